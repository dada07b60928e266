"""Distillation on the student's own tokens."""

from __future__ import annotations

from onpolicy.distill.compare import Comparison, Divergence, Support
from onpolicy.distill.support import full
from onpolicy.objectives.importance import sampler_weight, staleness_weight
from onpolicy.objectives.term import loss_term
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="teacher_mask")
def distill(
    inputs: LossInputs,
    *,
    divergence: Divergence,
    support: Support = full,
    view: str = "teacher",
    importance_cap: float | None = None,
) -> TermOutput:
    """L_t = w_t D(student_t, teacher_t), D over the next-token distribution at each sampled position.

    Equation 1 of arXiv 2603.24472 with any divergence. w_t = min(pi_old / pi_rollout, cap) min(pi / pi_old, cap), without
    gradient, as its code (SDPO's) has it; 1 where no cap is given.

    Args:
        divergence: how far the two distributions are apart
        support: the vocabulary entries on which they are compared
        view: the context under which the teacher reads
        importance_cap: cap of each of the two importance weights; null: no weights
    """
    distance = inputs.divergences[Comparison(view=view, support=support, divergence=divergence)]
    teacher = inputs.teacher[view]
    weight = sampler_weight(inputs, importance_cap) * staleness_weight(inputs, importance_cap)
    return TermOutput(
        per_token=weight * distance,
        metrics={
            "divergence": distance.detach(),
            "teacher_gap": teacher.logprobs - inputs.logprobs.detach(),
            "teacher_entropy": teacher.entropy,
        },
    )
