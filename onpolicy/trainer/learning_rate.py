"""The learning rate of a step: warm-up, then a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from onpolicy.config.schema import TrainerSettings


def lr_factor(settings: TrainerSettings, total_steps: int) -> Callable[[int], float]:
    """Step (from 0) -> fraction of the peak learning rate.

    Warm-up over w steps: (step + 1) / w, or step / w from zero; then the schedule.
    """

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step if settings.warmup_from_zero else step + 1) / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
        shapes = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return shapes[settings.lr_schedule]

    return factor


def same_rates(settings: TrainerSettings, one_total: int, other_total: int) -> bool:
    """Whether the steps that a run of either length does have the same rate in both."""
    one, other = lr_factor(settings, one_total), lr_factor(settings, other_total)
    return all(one(step) == other(step) for step in range(min(one_total, other_total)))
