"""Where two distributions are compared: ``(student, teacher)`` of ``[..., V]`` -> both ``[..., K]``, each summing to one.

All take and give log-probabilities, so every divergence works on every support. With ``tail="bucket"`` whatever lies
outside the chosen entries is lumped into one more entry, and a divergence never exceeds the full one (merging
outcomes can only hide differences). With ``tail="renormalize"`` the rest is forgotten and no such bound holds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Tail = Literal["bucket", "renormalize"]


def full(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The whole vocabulary. K = V."""
    return student, teacher


def teacher_topk(student: Tensor, teacher: Tensor, *, k: int = 100, tail: Tail = "bucket") -> tuple[Tensor, Tensor]:
    """The teacher's k likeliest tokens. K = k + 1 with a tail bucket.

    Args:
        k: entries compared
        tail: `bucket` lumps the rest into one entry, `renormalize` forgets it
    """
    return _restrict(student, teacher, _top(teacher, k), tail)


def student_topk(student: Tensor, teacher: Tensor, *, k: int = 100, tail: Tail = "bucket") -> tuple[Tensor, Tensor]:
    """The student's k likeliest tokens (SDPO; arXiv 2603.24472 runs it with k = 100 and a bucket). K = k + 1 with a tail bucket.

    Args:
        k: entries compared
        tail: `bucket` lumps the rest into one entry, `renormalize` forgets it
    """
    return _restrict(student, teacher, _top(student, k), tail)


def _top(logprobs: Tensor, k: int) -> Tensor:
    if k < 1:
        raise ValueError(f"support.k must be at least 1, got {k}")
    return logprobs.detach().topk(min(k, logprobs.shape[-1]), dim=-1).indices


def _restrict(student: Tensor, teacher: Tensor, ids: Tensor, tail: Tail) -> tuple[Tensor, Tensor]:
    """Both distributions on ``ids`` ``[..., k]``; which entries are chosen carries no gradient, their values do."""
    if ids.shape[-1] == student.shape[-1]:
        return student.gather(-1, ids), teacher.gather(-1, ids)
    if tail == "renormalize":
        return student.gather(-1, ids).log_softmax(-1), teacher.gather(-1, ids).log_softmax(-1)
    return _with_bucket(student, ids), _with_bucket(teacher, ids)


def _with_bucket(logprobs: Tensor, ids: Tensor) -> Tensor:
    # summing the rest itself instead of 1 - sum(top): exact where the top holds all but 1e-9, and its gradient is finite
    rest = logprobs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs.gather(-1, ids), rest], -1)
