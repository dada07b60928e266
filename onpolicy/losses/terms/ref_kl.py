"""The KL penalty towards the reference model; its ``weight`` is the ``kl_coef`` of other libraries."""

from __future__ import annotations

from torch import Tensor

from onpolicy.losses.terms.base import loss_term
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="sampled_mask", needs_ref=True)
def ref_kl(inputs: LossInputs, *, token_clip: float | None = None) -> TermOutput:
    """L_t = min(exp(d_t) - d_t - 1, token_clip), d_t = log ref(y_t) - log student(y_t): the estimator k3 of KL(student || ref).

    GRPO (arXiv 2402.03300, equation 4): unbiased, never negative, 0 at equality. Without a bound one token can outweigh a batch.

    Args:
        token_clip: upper bound of a token's estimate, nats, above which it has no gradient (verl: 10); null: none
    """
    assert inputs.ref_logprobs is not None
    estimate = k3(inputs.ref_logprobs - inputs.logprobs, token_clip)
    return TermOutput(per_token=estimate, metrics={"kl": estimate.detach()})


def k3(gap: Tensor, cap: float | None) -> Tensor:
    """min(exp(gap) - gap - 1, cap). Far beyond the cap the gap is cut first: exp(89) is infinite in float32, and so is its gradient."""
    if cap is None:
        return gap.exp() - gap - 1.0
    far = cap + 2.0  # k3(far) and k3(-far) lie above the cap
    return k3(gap.clamp(-far, far), None).clamp(max=cap)
