"""Distillation as a policy gradient on the sampled tokens."""

from __future__ import annotations

from onpolicy.losses.advantages import Advantage, teacher_logratio
from onpolicy.losses.comparison import reads_old
from onpolicy.losses.terms.base import loss_term, own_tokens
from onpolicy.losses.terms.importance import sampler_weight
from onpolicy.losses.terms.policy_gradient import clipped_objective
from onpolicy.losses.token_weights import TokenWeight, uniform
from onpolicy.types import LossInputs, TermOutput


@reads_old
@loss_term(tokens="teacher_mask")
def teacher_advantage(
    inputs: LossInputs,
    *,
    advantage: Advantage | None = None,
    token_weights: TokenWeight = uniform,
    context: str = "teacher",
    clip_low: float | None = None,
    clip_high: float | None = None,
    importance_cap: float | None = 2.0,
    temperature: float = 1.0,
) -> TermOutput:
    """L_t = -v_t w_t min(rho_t A_t, clip(rho_t) A_t), token weights v_t, A_t = u_t = log teacher(y_t) - log old student(y_t).

    In expectation over sampled tokens the gradient of the reverse KL at each position (Thinking Machines, On-Policy
    Distillation, 2025; the sampled-token form of OPSD, arXiv 2601.18734). A_t and w_t carry no gradient; only tokens whose
    rollout has a context are trained.

    Args:
        advantage: A_t; null: u_t itself
        token_weights: weight of each token
        context: the context that the teacher reads
        clip_low: the ratio rho_t = pi / pi_old is clipped at 1 - clip_low; null: no lower bound
        clip_high: the ratio is clipped at 1 + clip_high; null: no upper bound
        importance_cap: cap of the weight pi_old / pi_rollout; .inf: none; null: no weight
        temperature: what the logits of student and teacher are divided by before anything is computed from them
    """
    teacher = inputs.teacher[context]
    advantages = (teacher_logratio(inputs, context=context) if advantage is None else advantage(inputs)).detach()
    objective, clipped = clipped_objective(inputs, advantages, clip_low, clip_high)
    weights = token_weights(inputs, own_tokens(inputs, teacher.mask))
    return TermOutput(
        per_token=-sampler_weight(inputs, importance_cap) * weights * objective,
        metrics={
            "token_weight": weights,
            "teacher_gap": teacher.logprobs - inputs.old_logprobs,
            "advantage": advantages,
            "clip_fraction": clipped,
        },
    )
