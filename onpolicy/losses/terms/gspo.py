"""The policy gradient clipped by sequence."""

from __future__ import annotations

import torch

from onpolicy.losses.terms.base import loss_term
from onpolicy.losses.terms.importance import sampler_weight
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="sampled_mask")
def gspo(
    inputs: LossInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4, importance_cap: float | None = 2.0
) -> TermOutput:
    """L_t = -w_t min(s A_t, clip(s, 1 - clip_low, 1 + clip_high) A_t), s = (prod_t pi / pi_old)^(1/|y|).

    GSPO (arXiv 2507.18071, equations 5 to 7, its token variant with equal advantages): one ratio for a whole completion,
    whose gradient is spread over its tokens. With ``normalize: sequences`` the sum is exactly the paper's objective.

    Args:
        clip_low: the sequence's ratio is clipped at 1 - clip_low
        clip_high: the sequence's ratio is clipped at 1 + clip_high
        importance_cap: cap of the weight pi_old / pi_rollout; null: no weight
    """
    mask = inputs.sampled_mask
    change = torch.where(mask, inputs.logprobs - inputs.old_logprobs, 0.0)
    mean = change.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    # value: the sequence's ratio; gradient: that of the token's own log-probability
    ratio = (mean.detach() + inputs.logprobs - inputs.logprobs.detach()).exp()
    plain = ratio * inputs.advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * inputs.advantages
    weight = sampler_weight(inputs, importance_cap)
    return TermOutput(
        per_token=-weight * torch.minimum(plain, clipped),
        metrics={"clip_fraction": (clipped < plain).float(), "sequence_ratio": ratio.detach()},
    )
