"""Importance weights for tokens that another policy sampled: the engine's log-probabilities differ, and weights are updated."""

from __future__ import annotations

import torch
from torch import Tensor

from onpolicy.types import LossInputs


def sampler_weight(inputs: LossInputs, cap: float | None) -> Tensor:
    """min(pi_old / pi_rollout, cap) per token ``[B, T]``, without gradient; ones where ``cap`` is None.

    Truncated importance sampling between sampler and trainer, as in TRL and verl (``rollout_is``).
    """
    return truncated_ratio(inputs.old_logprobs, inputs.rollout_logprobs, cap)


def staleness_weight(inputs: LossInputs, cap: float | None) -> Tensor:
    """min(pi / pi_old, cap) per token ``[B, T]``, without gradient: 1 in the first update of a step (SDPO's ``is_clip``)."""
    return truncated_ratio(inputs.logprobs, inputs.old_logprobs, cap)


def truncated_ratio(logprobs: Tensor, behaviour: Tensor, cap: float | None) -> Tensor:
    """min(exp(logprobs - behaviour), cap), without gradient."""
    if cap is None:
        return torch.ones_like(behaviour)
    return (logprobs.detach() - behaviour).exp().clamp(max=cap)
