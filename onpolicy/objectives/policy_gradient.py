"""The clipped policy gradient on rewards."""

from __future__ import annotations

import torch

from onpolicy.objectives.advantage import Advantage, group
from onpolicy.objectives.importance import sampler_weight
from onpolicy.objectives.term import loss_term
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="response_mask")
def policy_gradient(
    inputs: LossInputs,
    *,
    advantage: Advantage = group,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    importance_cap: float | None = 2.0,
) -> TermOutput:
    """L_t = -w_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t), rho_t = pi / pi_old.

    PPO's clipped objective (arXiv 1707.06347, equation 7) with the group-relative advantages of GRPO (2402.03300) from
    ``credit``; w_t = min(pi_old / pi_rollout, cap) corrects for the sampler. For GRPO's penalty towards the start model
    add the term ``start_kl``.

    Args:
        advantage: what the teacher does to the group's advantage
        clip_low: the ratio is not rewarded for falling below 1 - clip_low
        clip_high: nor for rising above 1 + clip_high
        importance_cap: cap of the weight pi_old / pi_rollout; null: no weight
    """
    ratio = (inputs.logprobs - inputs.old_logprobs).exp()
    advantages = advantage(inputs).detach()
    plain = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    weight = sampler_weight(inputs, importance_cap)
    return TermOutput(
        per_token=-weight * torch.minimum(plain, clipped),
        metrics={"advantage": advantages, "clip_fraction": (clipped < plain).float(), "importance_weight": weight},
    )
