"""Whose weights teach. Rules only: the forward pass belongs to the backend that holds the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightRule:
    """How the teacher's weights follow the student's."""

    copies: bool
    """Whether the teacher has weights of its own; if not it is the student itself, as it is when it scores."""
    update: Callable[[Tensor, Tensor, int], None] | None
    """``(teacher, student, step)``: changes one teacher tensor in place after an optimizer step, whole or a shard of it; None: never."""


def live() -> WeightRule:
    """The student's current weights: no second model, no second copy in memory (OPSD's `fixed_teacher=False`)."""
    return WeightRule(copies=False, update=None)


def frozen() -> WeightRule:
    """The start model, never changed (the main runs of arXiv 2603.24472; OPSD's fixed teacher)."""
    return WeightRule(copies=True, update=None)


def ema(*, ema_decay: float = 0.95) -> WeightRule:
    """teacher <- ema_decay teacher + (1 - ema_decay) student after each step; SDPO's update rate .05 is a decay of .95.

    Args:
        ema_decay: share of the old teacher that is kept, 0 to 1
    """
    if not 0.0 <= ema_decay <= 1.0:
        raise ValueError(f"teacher.ema_decay must lie between 0 and 1, got {ema_decay}")

    def update(teacher: Tensor, student: Tensor, step: int) -> None:
        with torch.no_grad():
            teacher.mul_(ema_decay).add_(student.to(teacher), alpha=1.0 - ema_decay)

    return WeightRule(copies=True, update=update)


def snapshot(*, every: int = 10) -> WeightRule:
    """The student as it was at the last multiple of ``every`` steps (RLSD, RLCSD's sync interval).

    Args:
        every: steps between two copies
    """
    if every < 1:
        raise ValueError(f"teacher.every must be at least 1, got {every}")

    def update(teacher: Tensor, student: Tensor, step: int) -> None:
        if step % every == 0:
            with torch.no_grad():
                teacher.copy_(student)

    return WeightRule(copies=True, update=update)
