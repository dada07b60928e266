"""Distillation on the student's own tokens."""

from __future__ import annotations

from onpolicy.distill.compare import Comparison, Divergence, Support
from onpolicy.distill.support import full
from onpolicy.objectives.importance import truncated_importance
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

    Equation 1 of arXiv 2603.24472 with any divergence; w_t is 1, or the truncated importance weight.

    Args:
        divergence: how far the two distributions are apart
        support: the vocabulary entries on which they are compared
        view: the context under which the teacher reads
        importance_cap: cap of the weight pi_old / pi_rollout; null: no weight
    """
    distance = inputs.divergences[Comparison(view=view, support=support, divergence=divergence)]
    teacher = inputs.teacher[view]
    return TermOutput(
        per_token=truncated_importance(inputs, importance_cap) * distance,
        metrics={
            "divergence": distance.detach(),
            "teacher_gap": teacher.logprobs - inputs.logprobs.detach(),
            "teacher_entropy": teacher.entropy,
        },
    )
