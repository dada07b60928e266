"""The clipped policy gradient on rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from onpolicy.losses.advantages import Advantage, group
from onpolicy.losses.terms.base import loss_term, own_tokens
from onpolicy.losses.terms.importance import sampler_weight
from onpolicy.losses.token_weights import TokenWeight, uniform
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="sampled_mask")
def policy_gradient(
    inputs: LossInputs,
    *,
    advantage: Advantage = group,
    token_weights: TokenWeight = uniform,
    clip_low: float | None = 0.2,
    clip_high: float | None = 0.2,
    dual_clip: float | None = None,
    importance_cap: float | None = 2.0,
) -> TermOutput:
    """L_t = -v_t w_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t), rho_t = pi / pi_old.

    PPO's clipped objective (arXiv 1707.06347, equation 7) with the group-relative advantages of GRPO (2402.03300) from
    ``credit``; w_t = min(pi_old / pi_rollout, cap) corrects for the sampler, v_t are the token weights. A higher
    ``clip_high`` is DAPO's clip-higher (2503.14476). For GRPO's penalty towards the reference model add the term ``ref_kl``.

    Args:
        advantage: the advantage of each token; by default the group's
        token_weights: weight of each token
        clip_low: the ratio is clipped at 1 - clip_low; null: no lower bound
        clip_high: the ratio is clipped at 1 + clip_high; null: no upper bound
        dual_clip: where A < 0 the loss is at most -dual_clip A (arXiv 1912.09729); null: no bound
        importance_cap: cap of the weight pi_old / pi_rollout; null: no weight
    """
    advantages = advantage(inputs).detach()
    objective, clipped = clipped_objective(inputs, advantages, clip_low, clip_high, dual_clip)
    importance = sampler_weight(inputs, importance_cap)
    weights = token_weights(inputs, own_tokens(inputs, inputs.sampled_mask))
    return TermOutput(
        per_token=-importance * weights * objective,
        metrics={
            "token_weight": weights,
            "advantage": advantages,
            "clip_fraction": clipped,
            "importance_weight": importance,
            **({} if advantage is group else change_metrics(inputs, advantages)),
        },
    )


def change_metrics(inputs: LossInputs, advantages: Tensor) -> dict[str, Tensor]:
    """What token advantages change in the group's, ``[B, T]`` each; a bonus's realised dose is the root of the second over the third."""
    change = advantages - inputs.advantages
    return {"change": change, "squared_change": change.square(), "squared_group": inputs.advantages.square()}


def clipped_objective(
    inputs: LossInputs,
    advantages: Tensor,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """min(rho A, clip(rho) A), at least dual_clip A where A < 0; and 1 where the clip is active. Both ``[B, T]``."""
    ratio = (inputs.logprobs - inputs.old_logprobs).exp()
    plain = ratio * advantages
    low = 0.0 if clip_low is None else 1.0 - clip_low
    bounded = ratio.clamp(low, None if clip_high is None else 1.0 + clip_high) * advantages
    objective = torch.minimum(plain, bounded)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    return objective, (objective != plain).float()
