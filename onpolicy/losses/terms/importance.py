"""Importance weights for tokens that another policy sampled: the engine's log-probabilities differ, and weights are updated."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from onpolicy.losses.terms.base import own_tokens
from onpolicy.types import LossInputs

ImportanceLevel = Literal["token", "sequence"]
"""Whether each token has a weight of its own, or all of a completion the mean of theirs."""


def sampler_weight(inputs: LossInputs, cap: float | None, level: ImportanceLevel = "token") -> Tensor:
    """min(pi_old / pi_rollout, cap) per token ``[B, T]``, without gradient; ones where ``cap`` is None.

    Truncated importance sampling between sampler and trainer, as in TRL and verl (``rollout_is``).

    Args:
        cap: upper bound of a token's weight
        level: ``sequence`` gives every token the mean over the term's tokens of its completion
    """
    weights = truncated_ratio(inputs.old_logprobs, inputs.rollout_logprobs, cap)
    if level == "token":
        return weights
    mask = own_tokens(inputs, inputs.sampled_mask)
    mean = torch.where(mask, weights, 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return mean.expand_as(weights)


def staleness_weight(inputs: LossInputs, cap: float | None) -> Tensor:
    """min(pi / pi_old, cap) per token ``[B, T]``, without gradient: 1 in the first update of a step (SDPO's ``is_clip``)."""
    return truncated_ratio(inputs.logprobs, inputs.old_logprobs, cap)


def truncated_ratio(logprobs: Tensor, behaviour: Tensor, cap: float | None) -> Tensor:
    """min(exp(logprobs - behaviour), cap), without gradient."""
    if cap is None:
        return torch.ones_like(behaviour)
    return (logprobs.detach() - behaviour).exp().clamp(max=cap)
