"""Supports: ``(student, teacher)`` of ``[..., V]`` -> the vocabulary entries on which the two are compared.

Every divergence works on every support, because both distributions are restricted to the entries so that each sums to one.
With ``tail="bucket"`` everything outside is merged into one more entry, and a divergence never exceeds the full one
(merging outcomes can only hide differences). With ``tail="renormalize"`` the rest is dropped and no such bound holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Tail = Literal["bucket", "renormalize"]


@dataclass(frozen=True)
class Entries:
    """Entries of the vocabulary, and how the others are treated."""

    ids: Tensor | None
    """[..., k], each once; None: all of them."""
    tail: Tail = "bucket"


def full(student: Tensor, teacher: Tensor) -> Entries:
    """The whole vocabulary. K = V."""
    return Entries(None)


def teacher_topk(student: Tensor, teacher: Tensor, *, k: int = 100, tail: Tail = "bucket") -> Entries:
    """The teacher's k most likely tokens. K = k + 1 with a tail bucket.

    Args:
        k: number of entries
        tail: `bucket` merges the rest into one entry, `renormalize` drops it
    """
    return Entries(_top(teacher, k), tail)


def student_topk(student: Tensor, teacher: Tensor, *, k: int = 100, tail: Tail = "bucket") -> Entries:
    """The student's k most likely tokens (SDPO; arXiv 2603.24472 runs it with k = 100 and a bucket). K = k + 1 with a tail bucket.

    Args:
        k: number of entries
        tail: `bucket` merges the rest into one entry, `renormalize` drops it
    """
    return Entries(_top(student, k), tail)


def restrict(logprobs: Tensor, entries: Entries) -> Tensor:
    """A distribution ``[..., V]`` restricted to the entries ``[..., K]``, summing to one; the selection carries no gradient."""
    if entries.ids is None:
        return logprobs
    # summing the rest itself instead of 1 - sum(top): exact where the top holds all but 1e-9, and its gradient is finite
    rest = logprobs.scatter(-1, entries.ids, -torch.inf).logsumexp(-1, keepdim=True)
    return joined(logprobs.gather(-1, entries.ids), rest, entries.tail)


def joined(top: Tensor, rest: Tensor, tail: str) -> Tensor:
    """Log-probabilities ``[..., k]`` and that of everything else ``[..., 1]`` -> ``[..., K]``."""
    return torch.cat([top, rest], -1) if tail == "bucket" else top.log_softmax(-1)


def _top(logprobs: Tensor, k: int) -> Tensor | None:
    if k < 1:
        raise ValueError(f"support.k must be at least 1, got {k}")
    return None if k >= logprobs.shape[-1] else logprobs.detach().topk(k, dim=-1).indices
