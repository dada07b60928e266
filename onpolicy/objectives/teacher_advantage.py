"""Distillation as a policy gradient on the sampled tokens."""

from __future__ import annotations

from onpolicy.distill.token_weight import TokenWeight, uniform
from onpolicy.objectives.importance import sampler_weight
from onpolicy.objectives.term import loss_term
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="teacher_mask")
def teacher_advantage(
    inputs: LossInputs,
    *,
    token_weights: TokenWeight = uniform,
    view: str = "teacher",
    clip: float | None = None,
    importance_cap: float | None = 2.0,
) -> TermOutput:
    """L_t = -v_t w_t A_t rho_t, with token weights v_t, A_t = u_t = log teacher(y_t) - log old student(y_t), rho_t = pi / pi_old.

    In expectation over sampled tokens the gradient of the reverse KL at each position (Thinking Machines, On-Policy
    Distillation, 2025; the sampled-token form of OPSD, arXiv 2601.18734). A_t and w_t carry no gradient.

    Args:
        token_weights: how much each token counts
        view: the context under which the teacher reads
        clip: |A_t| is cut here, nats; null: not at all
        importance_cap: cap of the weight pi_old / pi_rollout; null: no weight
    """
    teacher = inputs.teacher[view]
    gap = teacher.logprobs - inputs.old_logprobs
    advantage = gap if clip is None else gap.clamp(-clip, clip)
    ratio = (inputs.logprobs - inputs.old_logprobs).exp()
    weight = sampler_weight(inputs, importance_cap) * token_weights(inputs, teacher.mask)
    return TermOutput(
        per_token=-weight * advantage * ratio,
        metrics={"teacher_gap": gap, "teacher_entropy": teacher.entropy},
    )
