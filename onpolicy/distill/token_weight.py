"""How much each token counts: ``(inputs, mask) -> [B, T]``, without gradient, 0 or more.

A weight multiplies a term's loss per token; the term still divides by its number of tokens, so weights below one also
lower the loss as a whole. ``shuffled`` is the control for that: the same weights, hence the same mass, elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from onpolicy.types import LossInputs

TokenWeight = Callable[[LossInputs, Tensor], Tensor]
"""``(inputs, mask [B, T] bool: the term's tokens)`` -> weights ``[B, T]``."""


def uniform(inputs: LossInputs, mask: Tensor) -> Tensor:
    """w_t = 1."""
    return torch.ones_like(inputs.old_logprobs)


def position(
    inputs: LossInputs, mask: Tensor, *, minimum: float = 0.25, midpoint: float = 0.30, width: float = 0.10
) -> Tensor:
    """w_t = minimum + (1 - minimum) sigmoid((t / |y| - midpoint) / width): later tokens count more.

    PW-OPSD (arXiv 2605.21606), its moderate setting: .29 at the start, .63 at 30 %, .91 at half of the row's own length.

    Args:
        minimum: weight that no token goes below
        midpoint: place of the rise, as a share of the completion
        width: how gradual the rise is, in the same unit
    """
    lengths = inputs.response_mask.sum(-1, keepdim=True).clamp(min=1)
    place = torch.arange(mask.shape[1], device=mask.device) / lengths
    return minimum + (1.0 - minimum) * torch.sigmoid((place - midpoint) / width)


def skip_first(inputs: LossInputs, mask: Tensor, *, tokens: int = 3) -> Tensor:
    """0 on the first tokens of each completion, 1 elsewhere; SDFT (arXiv 2601.19897) leaves out three.

    Args:
        tokens: how many
    """
    return (torch.arange(mask.shape[1], device=mask.device) >= tokens).expand(mask.shape).to(inputs.entropy.dtype)


def entropy(inputs: LossInputs, mask: Tensor, *, share: float = 0.2, keep: Literal["high", "low"] = "high") -> Tensor:
    """1 on the share of each row's tokens where the student is least (or most) sure, 0 elsewhere.

    The forks of arXiv 2506.01939 (high), or all but them (low).

    Args:
        share: part of the row's tokens that is kept, 0 to 1; at least one token
        keep: `high` keeps the tokens of highest entropy, `low` those of lowest
    """
    score = inputs.entropy if keep == "high" else -inputs.entropy
    return _top_share(score, mask, share)


def gap(inputs: LossInputs, mask: Tensor, *, view: str = "teacher", scale: float = 1.0) -> Tensor:
    """w_t = sigmoid(u_t / scale), u_t = log teacher(y_t) - log student(y_t): what the teacher would not have said counts less.

    The gate of SDAR (arXiv 2605.15155).

    Args:
        view: the context under which the teacher reads
        scale: nats
    """
    return torch.sigmoid((inputs.teacher[view].logprobs - inputs.logprobs.detach()) / scale)


def random(inputs: LossInputs, mask: Tensor, *, share: float = 0.2, seed: int = 0) -> Tensor:
    """1 on a random share of each row's tokens: the control for `entropy` and any other choice of as many tokens.

    Args:
        share: part of the row's tokens that is kept, 0 to 1; at least one token
        seed: which tokens; the same rows get the same ones
    """
    return _top_share(_noise(inputs, seed), mask, share)


def shuffled(inputs: LossInputs, mask: Tensor, *, token_weights: TokenWeight, seed: int = 0) -> Tensor:
    """The weights of another rule in random order within each row: the same values and the same mass, in other places.

    Args:
        token_weights: the rule this is the control for
        seed: which order; the same rows get the same one
    """
    weights, noise = token_weights(inputs, mask), _noise(inputs, seed)
    out = torch.zeros_like(weights)
    for row in range(len(mask)):
        places = mask[row].nonzero()[:, 0]
        out[row, places] = weights[row, places[noise[row, places].argsort()]]
    return out


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
