"""Likelihood of given completions: fine-tuning on those of a dataset, or on sampled ones."""

from __future__ import annotations

from onpolicy.losses.terms.base import loss_term, own_tokens
from onpolicy.losses.token_weights import TokenWeight, uniform
from onpolicy.types import LossInputs, TermOutput


@loss_term(tokens="sampled_mask", unrewarded=True)
def cross_entropy(inputs: LossInputs, *, token_weights: TokenWeight = uniform) -> TermOutput:
    """L_t = -v_t log student(y_t), v_t the token weights: supervised fine-tuning.

    With `data.completions_column` the completions are a dataset's, as in the off-policy self-distillation of arXiv
    2603.24472, section 4; on sampled completions with `route: correct` it is rejection sampling fine-tuning (STaR, arXiv 2203.14465).

    Args:
        token_weights: weight of each token
    """
    weights = token_weights(inputs, own_tokens(inputs, inputs.sampled_mask))
    return TermOutput(per_token=-weights * inputs.logprobs, metrics={"token_weight": weights})
