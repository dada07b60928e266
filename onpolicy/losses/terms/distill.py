"""Distillation on the student's own tokens."""

from __future__ import annotations

from onpolicy.losses.comparison import Comparison, Divergence, Support, Target
from onpolicy.losses.supports import full
from onpolicy.losses.targets import identity
from onpolicy.losses.terms.base import loss_term, own_tokens
from onpolicy.losses.terms.importance import ImportanceLevel, sampler_weight, staleness_weight
from onpolicy.losses.token_weights import TokenWeight, uniform
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="teacher_mask")
def distill(
    inputs: LossInputs,
    *,
    divergence: Divergence,
    support: Support = full,
    target: Target = identity,
    token_weights: TokenWeight = uniform,
    context: str = "teacher",
    token_clip: float | None = None,
    importance_cap: float | None = None,
    importance_level: ImportanceLevel = "token",
    temperature: float = 1.0,
) -> TermOutput:
    """L_t = v_t w_t min(D(student_t, target_t), token_clip), D over the next-token distribution at each sampled position.

    Equation 1 of arXiv 2603.24472 with any divergence. v_t are the token weights;
    w_t = min(pi_old / pi_rollout, cap) min(pi / pi_old, cap), without gradient, as in its code (SDPO's); 1 without a cap.

    Args:
        divergence: the divergence between the two distributions
        support: the vocabulary entries on which they are compared
        target: the distribution that the student is trained towards: the teacher's or an edit of it
        token_weights: weight of each token
        context: the context that the teacher reads
        token_clip: upper bound of a token's divergence, nats, above which it has no gradient; null: none
        importance_cap: cap of each of the two importance weights; null: no weights
        temperature: what both sides' logits are divided by first (OPSD's code: 1.1)
        importance_level: `sequence` gives each token the mean of min(pi_old / pi_rollout, cap) over its completion (SDFT's code)
    """
    comparison = Comparison(context, support, target, divergence, temperature)
    distance = inputs.divergences[comparison]
    teacher = inputs.teacher[context]
    clipped = distance if token_clip is None else distance.clamp(max=token_clip)
    importance = sampler_weight(inputs, importance_cap, importance_level) * staleness_weight(inputs, importance_cap)
    weights = token_weights(inputs, own_tokens(inputs, teacher.mask))
    return TermOutput(
        per_token=importance * weights * clipped,
        metrics={
            "divergence": distance.detach(),
            "token_weight": weights,
            "teacher_gap": teacher.logprobs - inputs.logprobs.detach(),
            "teacher_entropy": teacher.entropy,
        },
    )
