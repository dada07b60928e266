"""The KL penalty towards the reference model; its ``weight`` is the ``kl_coef`` of other libraries."""

from __future__ import annotations

from onpolicy.losses.terms.base import loss_term
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="sampled_mask", needs_ref=True)
def ref_kl(inputs: LossInputs) -> TermOutput:
    """L_t = exp(d_t) - d_t - 1 with d_t = log ref(y_t) - log student(y_t): the estimator k3 of KL(student || ref).

    GRPO (arXiv 2402.03300, equation 4): unbiased, never negative, 0 at equality.
    """
    assert inputs.ref_logprobs is not None
    gap = inputs.ref_logprobs - inputs.logprobs
    estimate = gap.exp() - gap - 1.0
    return TermOutput(per_token=estimate, metrics={"kl": estimate.detach()})
