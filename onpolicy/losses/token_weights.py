"""Token weights: ``(inputs, mask) -> [B, T]``, without gradient, at least 0.

A weight multiplies a term's loss per token; the term still divides by its number of tokens, so weights below 1 also lower
the loss as a whole; ``normalized`` undoes that. Under a term's `select` a weight of 0 takes the token out of the mean as well.
Controls: ``shuffled`` and ``entropy_matched`` move the same weights to other tokens, ``random`` selects the same number of
tokens, and another ``lexicon``, such as the ``neutral`` words, tests whether the words matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from onpolicy.config.resolved import unbound
from onpolicy.losses.comparison import reads_old, reads_ref
from onpolicy.losses.update_values import reads_update
from onpolicy.types import REF, LossInputs

Function = TypeVar("Function", bound=Callable[..., Any])
TokenWeight = Callable[[LossInputs, Tensor], Tensor]
"""``(inputs, mask [B, T] bool: the term's tokens)`` -> weights ``[B, T]``."""


SAME_ENTROPY = 1e-5
"""Nats. Siblings begin alike, so several tokens have one entropy but for rounding; at a threshold all of them count."""


def masks_alone(function: Function) -> Function:
    """Declares that a function reads nothing but masks and spans: what it selects is known before any model has read the update."""
    function.masks_alone = True  # type: ignore[attr-defined]
    return function


def reads_masks_alone(bound: TokenWeight) -> bool:
    """Whether ``masks_alone`` was declared."""
    return getattr(unbound(bound)[0], "masks_alone", False)


@masks_alone
def uniform(inputs: LossInputs, mask: Tensor) -> Tensor:
    """w_t = 1."""
    return torch.ones_like(inputs.rollout_logprobs)


def position(
    inputs: LossInputs, mask: Tensor, *, minimum: float = 0.25, midpoint: float = 0.30, width: float = 0.10
) -> Tensor:
    """w_t = minimum + (1 - minimum) sigmoid(((t + 1/2) / |y| - midpoint) / width), t from 0: later tokens count more.

    PW-OPSD (arXiv 2605.21606), its moderate setting: .29 at the start, .63 at 30 %, .91 at half of the row's own length.

    Args:
        minimum: smallest weight
        midpoint: position of the rise, as a fraction of the completion
        width: width of the rise, in the same unit
    """
    lengths = inputs.sampled_mask.sum(-1, keepdim=True).clamp(min=1)
    place = (inputs.sampled_mask.cumsum(-1).to(inputs.logprobs.dtype) - 0.5) / lengths
    return minimum + (1.0 - minimum) * torch.sigmoid((place - midpoint) / width)


@masks_alone
def skip_first(inputs: LossInputs, mask: Tensor, *, tokens: int = 3) -> Tensor:
    """0 on the first tokens of each completion, 1 elsewhere; SDFT (arXiv 2601.19897) skips three.

    Args:
        tokens: how many
    """
    return (inputs.sampled_mask.cumsum(-1) > tokens).to(inputs.rollout_logprobs.dtype)


def entropy(
    inputs: LossInputs, mask: Tensor, *, share: float = 0.2, keep: Literal["high", "low", "not_high"] = "high"
) -> Tensor:
    """1 on the given fraction of each row's tokens where the student's entropy is highest (or lowest), 0 elsewhere.

    The forks of arXiv 2506.01939 (high), or all but them (not_high).

    Args:
        share: fraction of the row's tokens that is selected, 0 to 1; at least one token
        keep: `high` keeps the tokens of highest entropy, `low` those of lowest, `not_high` all but those that `high` keeps
    """
    chosen = _top_share(-inputs.entropy if keep == "low" else inputs.entropy, mask, share)
    return mask.to(chosen.dtype) - chosen if keep == "not_high" else chosen


@reads_update
def entropy_in_update(inputs: LossInputs, mask: Tensor, *, share: float = 0.2) -> Tensor:
    """1 on the given fraction of the *update's* tokens where the student's entropy is highest, 0 elsewhere.

    REOPOLD, phase II (arXiv 2603.11137): the threshold is the quantile 1 - share over the whole batch, so completions of high
    entropy have more of the tokens than others. `entropy` takes the same fraction of each completion.

    Args:
        share: fraction of the update's tokens that is selected, 0 to 1
    """
    everything = inputs.over_update(inputs.entropy[mask])
    if not len(everything):
        return torch.zeros_like(inputs.entropy)
    return ((inputs.entropy >= _quantile(everything, 1.0 - share) - SAME_ENTROPY) & mask).to(inputs.entropy.dtype)


def teacher_logratio(inputs: LossInputs, mask: Tensor, *, context: str = "teacher", scale: float = 1.0) -> Tensor:
    """w_t = sigmoid(u_t / scale), u_t = log teacher(y_t) - log student(y_t): tokens that are unlikely under the teacher count less.

    The gate of SDAR (arXiv 2605.15155).

    Args:
        context: the context that the teacher reads
        scale: nats
    """
    return torch.sigmoid((inputs.teacher[context].logprobs - inputs.logprobs.detach()) / scale)


@reads_old
def logratio_above(inputs: LossInputs, mask: Tensor, *, threshold: float, context: str = "teacher") -> Tensor:
    """1 where u_t = log teacher(y_t) - log old student(y_t) is at least the threshold, 0 below (REOPOLD, arXiv 2603.11137, phase I).

    Args:
        threshold: nats
        context: the context that the teacher reads
    """
    return (inputs.teacher[context].logprobs - inputs.old_logprobs >= threshold).to(inputs.entropy.dtype)


def teacher_entropy(
    inputs: LossInputs,
    mask: Tensor,
    *,
    threshold: float = 0.8,
    keep: Literal["above", "below"] = "above",
    context: str = "teacher",
) -> Tensor:
    """1 where the teacher's entropy lies above (or not above) the threshold, 0 elsewhere (EOPD, arXiv 2603.07079).

    Two terms, one with `above` and one with `below`, choose between two losses per token.

    Args:
        threshold: nats
        keep: `above` or `below`
        context: the context that the teacher reads
    """
    above = inputs.teacher[context].entropy > threshold
    return (above if keep == "above" else ~above).to(inputs.entropy.dtype)


def teacher_certainty(inputs: LossInputs, mask: Tensor, *, scale: float = 1.0, context: str = "teacher") -> Tensor:
    """w_t = exp(-H(teacher_t) / scale): tokens where the teacher is uncertain count less (SRPO, arXiv 2604.02288).

    Args:
        scale: nats
        context: the context that the teacher reads
    """
    return torch.exp(-inputs.teacher[context].entropy / scale)


@reads_ref
def protect_markers(
    inputs: LossInputs, mask: Tensor, *, lexicon: str = "self_doubt", minimum: float = 0.0, saturation: float = 0.05
) -> Tensor:
    """w_t = 1 - (1 - minimum) min(1, M_t / saturation), M_t the reference model's mass on the lexicon's markers at t.

    Reduces the loss wherever a marker was *likely*, not only where one was sampled: a loss over the vocabulary suppresses
    markers mostly at the former.

    Args:
        lexicon: the lexicon of the markers; only those that are one token of the tokenizer
        minimum: weight where the reference model's marker mass is at least `saturation`
        saturation: marker mass from which the weight is the minimum
    """
    mass = inputs.marker_mass[REF, lexicon].exp()
    return 1.0 - (1.0 - minimum) * (mass / saturation).clamp(max=1.0)


@masks_alone
def spans(inputs: LossInputs, mask: Tensor, *, marked: str, inside: float = 1.0, outside: float = 0.0) -> Tensor:
    """One weight inside the marked spans of the completion, another outside (TRACE, arXiv 2605.10194).

    Args:
        marked: a name under `spans`
        inside: weight of a marked token
        outside: weight of the others
    """
    return torch.where(inputs.spans[marked], inside, outside).to(inputs.rollout_logprobs.dtype)


def normalized(
    inputs: LossInputs,
    mask: Tensor,
    *,
    token_weights: TokenWeight,
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
) -> Tensor:
    """The weights of another function divided by their mean over each row: they redistribute the loss without changing its size.

    The geometric mean is Distilled RL's (arXiv 2607.17247); it needs weights above 0.

    Args:
        token_weights: the other function
        mean: `arithmetic` or `geometric`
    """
    weights, count = token_weights(inputs, mask), mask.sum(-1, keepdim=True).clamp(min=1)
    values = weights if mean == "arithmetic" else weights.log()
    average = values.masked_fill(~mask, 0.0).sum(-1, keepdim=True) / count
    divisor = average if mean == "arithmetic" else average.exp()
    return weights / divisor.clamp(min=torch.finfo(weights.dtype).tiny)


@reads_update
def normalized_in_update(inputs: LossInputs, mask: Tensor, *, token_weights: TokenWeight) -> Tensor:
    """The weights of another function divided by their mean over the term's tokens in the whole update (SRPO's code, arXiv 2604.02288).

    Args:
        token_weights: the other function
    """
    weights = token_weights(inputs, mask)
    everything = inputs.over_update(weights[mask])
    mean = everything.mean() if len(everything) else torch.ones_like(weights.sum())
    return weights / mean.clamp(min=torch.finfo(weights.dtype).tiny)


def random(inputs: LossInputs, mask: Tensor, *, share: float = 0.2, seed: int = 0) -> Tensor:
    """1 on a random fraction of each row's tokens: the control for `entropy` and any other selection of the same size.

    Args:
        share: fraction of the row's tokens that is kept, 0 to 1; at least one token
        seed: selects the tokens; equal rows get the same ones
    """
    return _top_share(_noise(inputs, seed), mask, share)


def shuffled(inputs: LossInputs, mask: Tensor, *, token_weights: TokenWeight, seed: int = 0) -> Tensor:
    """The weights of another function in random order within each row: the same values and sum, on other tokens.

    Args:
        token_weights: the function that this is the control for
        seed: selects the order; equal rows get the same one
    """
    return permuted(inputs, token_weights(inputs, mask), mask, seed=seed)


def entropy_matched(
    inputs: LossInputs, mask: Tensor, *, token_weights: TokenWeight, strata: int = 10, seed: int = 0
) -> Tensor:
    """The weights of another function shuffled among tokens of similar entropy: the same sum on equally uncertain tokens.

    An effect that survives this control is explained by the weights' preference for uncertain tokens.

    Args:
        token_weights: the function that this is the control for
        strata: number of equally large bins of the student's entropy within which weights are shuffled
        seed: selects the order; equal rows get the same one
    """
    return permuted(inputs, token_weights(inputs, mask), mask, strata=strata, seed=seed)


def permuted(inputs: LossInputs, weights: Tensor, mask: Tensor, *, strata: int = 1, seed: int = 0) -> Tensor:
    """Each row's weights in random order within bins of the student's entropy."""
    out, noise = torch.zeros_like(weights), _noise(inputs, seed)
    for row in range(len(mask)):
        places = mask[row].nonzero()[:, 0]
        ordered = places if strata == 1 else places[inputs.entropy[row, places].argsort()]
        for part in ordered.tensor_split(min(strata, max(len(ordered), 1))):
            out[row, part] = weights[row, part[noise[row, part].argsort()]]
    return out


def _quantile(values: Tensor, share: float) -> Tensor:
    """The quantile, with linear interpolation; ``torch.quantile`` refuses more than 16 million values."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"token_weights.share must lie above 0 and at most at 1, got {1.0 - share}")
    place = share * (len(values) - 1)
    low = int(place)
    ordered = values.sort().values
    return torch.lerp(ordered[low], ordered[min(low + 1, len(values) - 1)], place - low)


def _top_share(score: Tensor, mask: Tensor, share: float) -> Tensor:
    if not 0.0 < share <= 1.0:
        raise ValueError(f"token_weights.share must lie above 0 and at most at 1, got {share}")
    ranks = score.masked_fill(~mask, -torch.inf).argsort(-1, descending=True).argsort(-1)
    kept = (share * mask.sum(-1, keepdim=True)).ceil()
    return ((ranks < kept) & mask).to(score.dtype)


def _noise(inputs: LossInputs, seed: int) -> Tensor:
    """[B, T] that depends on a row's own log-probabilities alone, so that it is the same in every micro-batch."""
    rows = []
    for logprobs in inputs.rollout_logprobs.double().cpu():
        key = hash((seed, tuple(logprobs[logprobs != 0].tolist()))) & 0x7FFF_FFFF
        rows.append(torch.rand(len(logprobs), generator=torch.Generator().manual_seed(key)))
    return torch.stack(rows).to(inputs.entropy.device)
