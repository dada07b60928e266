"""The policy gradient whose importance weight is clipped rather than its objective."""

from __future__ import annotations

from onpolicy.losses.terms.base import loss_term
from onpolicy.losses.terms.importance import sampler_weight
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="sampled_mask")
def cispo(
    inputs: LossInputs, *, clip_low: float = 1.0, clip_high: float = 2.0, importance_cap: float | None = 2.0
) -> TermOutput:
    """L_t = -w_t sg(clip(rho_t, 1 - clip_low, 1 + clip_high)) A_t log pi(y_t), rho_t = pi / pi_old.

    CISPO (MiniMax-M1, arXiv 2506.13585, equation 4): no token ever loses its gradient, so rare words that start a new line
    of thought are still trained. A ``clip_low`` of 1 leaves the lower side open, as the paper does.

    Args:
        clip_low: the weight is at least 1 - clip_low
        clip_high: the weight is at most 1 + clip_high
        importance_cap: cap of the weight pi_old / pi_rollout; null: no weight
    """
    ratio = (inputs.logprobs.detach() - inputs.old_logprobs).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    weight = sampler_weight(inputs, importance_cap) * clipped
    return TermOutput(
        per_token=-weight * inputs.advantages * inputs.logprobs,
        metrics={"clip_fraction": (clipped != ratio).float()},
    )
