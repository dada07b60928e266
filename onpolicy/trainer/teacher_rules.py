"""Rules for the teacher's weights. The forward pass belongs to whatever holds the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from onpolicy.config.bounds import AT_LEAST_ONE, Bounds

Share = Annotated[float, Bounds(least=0, most=1)]
Update = Callable[[Tensor, Tensor, Tensor | None, int], None]
"""``(teacher, student, ref, step)``: updates one teacher tensor in place after an optimizer step, a full tensor or a shard; ``ref`` is the
reference model's tensor, None unless ``reads_ref``."""


@dataclass(frozen=True)
class WeightRule:
    """Which weights the teacher has, and how they are updated."""

    copies: bool
    """Whether the teacher has weights of its own; otherwise it is the student with its current weights."""
    update: Update | None = None
    """None: they never change."""
    reads_ref: bool = False
    """Whether ``update`` reads the reference model's tensor."""
    student_share: float = 0.0
    """Fraction of the current student in the teacher's logits; both read the privileged prompt."""
    path: str | None = None
    """Another model as the teacher: a local folder or hub id."""


def live() -> WeightRule:
    """The student's current weights: no second model, no second copy in memory (OPSD's `fixed_teacher=False`)."""
    return WeightRule(copies=False)


def frozen() -> WeightRule:
    """The reference model, never changed (the main runs of arXiv 2603.24472; OPSD's fixed teacher).

    Under LoRA the adapter is switched off.
    """
    return WeightRule(copies=True)


def model(*, path: str) -> WeightRule:
    """Another model, never changed; its tokenizer must be the student's (on-policy distillation, GKD, MiniLLM).

    Args:
        path: local folder or hub id
    """
    return WeightRule(copies=True, path=path)


def ema(*, ema_decay: Share = 0.95) -> WeightRule:
    """teacher <- ema_decay teacher + (1 - ema_decay) student after each step; SDPO's update rate .05 is a decay of .95.

    Args:
        ema_decay: fraction of the old teacher that is kept, 0 to 1
    """

    def update(teacher: Tensor, student: Tensor, ref: Tensor | None, step: int) -> None:
        with torch.no_grad():
            teacher.mul_(ema_decay).add_(student.to(teacher), alpha=1.0 - ema_decay)

    return WeightRule(copies=True, update=update)


def snapshot(*, every: Annotated[int, AT_LEAST_ONE] = 10) -> WeightRule:
    """The student as it was at the last multiple of ``every`` steps (RLSD, RLCSD's sync interval).

    Args:
        every: steps between two copies
    """

    def update(teacher: Tensor, student: Tensor, ref: Tensor | None, step: int) -> None:
        if step % every == 0:
            with torch.no_grad():
                teacher.copy_(student)

    return WeightRule(copies=True, update=update)


def trust_region_weights(*, student_share: Share = 0.05) -> WeightRule:
    """teacher = (1 - student_share) ref + student_share student, weight by weight, after each step.

    Args:
        student_share: distance from the reference model; 0 is `frozen`, 1 the student after the last step
    """

    def update(teacher: Tensor, student: Tensor, ref: Tensor | None, step: int) -> None:
        assert ref is not None
        with torch.no_grad():
            teacher.copy_(ref).lerp_(student.to(teacher), student_share)

    return WeightRule(copies=True, update=update, reads_ref=True)


def trust_region_logits(*, student_share: Share = 0.05) -> WeightRule:
    """Teacher logits = (1 - student_share) ref + student_share student, both reading the privileged prompt (SDPO's trust region).

    SDPO (arXiv 2601.20802): the distribution is the normalised geometric mean of the two. It takes two forward passes per context.

    Args:
        student_share: 0 is `frozen`, 1 is `live`
    """
    return WeightRule(copies=True, student_share=student_share)
