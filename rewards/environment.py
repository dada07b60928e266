"""What the environment of a rollout says about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def environment(environment: Mapping[str, Any] | None, *, metric: str | None = None) -> float | None:
    """The reward that the environment gives the rollout, e.g. a rubric's weighted sum; None where it gave none.

    Args:
        metric: one of the numbers that the environment measured, in place of its reward
    """
    if environment is None:
        return None
    value = environment["reward"] if metric is None else environment["metrics"].get(metric)
    return None if value is None else float(value)
