"""Estimates of a KL from the sampled token alone, as losses."""

from __future__ import annotations

from typing import Literal

from onpolicy.losses.terms.base import loss_term, own_tokens
from onpolicy.losses.terms.importance import sampler_weight, staleness_weight
from onpolicy.losses.terms.ref_kl import k3
from onpolicy.losses.token_weights import TokenWeight, uniform
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="teacher_mask")
def sampled_kl(
    inputs: LossInputs,
    *,
    estimator: Literal["k1", "k2", "k3"] = "k1",
    token_weights: TokenWeight = uniform,
    context: str = "teacher",
    token_clip: float | None = None,
    importance_cap: float | None = None,
) -> TermOutput:
    """L_t = v_t w_t k(u_t), u_t = log teacher(y_t) - log student(y_t), v_t the token weights, w_t as in `distill`.

    k1 = sg(-u) log student(y): SDPO's sampled-token loss (arXiv 2601.20802); its *gradient* is an unbiased estimate of that
    of the reverse KL; its value has no meaning. (Differentiating -u itself would give 0 in expectation.)
    k2 = u^2 / 2: the same gradient, and a value near the KL while the two are close.
    k3 = exp(u) - u - 1: the reverse KL's value without bias, but the *forward* KL's gradient.
    The estimators are those of John Schulman, Approximating KL Divergence (2020).

    Args:
        estimator: `k1`, `k2` or `k3`
        token_weights: weight of each token
        context: the context that the teacher reads
        token_clip: upper bound of a token's `k3`, nats, above which it has no gradient (verl: 10); null: none
        importance_cap: cap of each of the two importance weights; null: no weights
    """
    teacher = inputs.teacher[context]
    gap = teacher.logprobs - inputs.logprobs
    losses = {
        "k1": lambda: -gap.detach() * inputs.logprobs,
        "k2": lambda: gap.square() / 2,
        "k3": lambda: k3(gap, token_clip),
    }
    importance = sampler_weight(inputs, importance_cap) * staleness_weight(inputs, importance_cap)
    weights = token_weights(inputs, own_tokens(inputs, teacher.mask))
    return TermOutput(
        per_token=importance * weights * losses[estimator](),
        metrics={"teacher_gap": gap.detach(), "kl": -gap.detach()},
    )
