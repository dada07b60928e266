"""Choosing among the other rollouts of a problem, for contexts that show one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import isnan
from typing import Literal

from onpolicy.types import CORRECT_THRESHOLD, Message, RolloutGroup

Choice = Literal["first", "random"]
Shown = Callable[[RolloutGroup, int, Sequence[float]], tuple[Message, ...] | None]
"""A context that needs no more than its group."""


def ordered(group: RolloutGroup, index: int, candidates: Sequence[int], choose: Choice) -> list[int]:
    """The candidates in the order in which they are shown to a rollout.

    ``random`` depends on the problem and the rollout alone, so that a resumed run shows what an uninterrupted one would have shown;
    the rollouts of another epoch are others.
    """
    found = list(candidates)
    if choose != "first":
        random.Random(f"{group.prompt.id}/{index}").shuffle(found)
    return found


def outcome(reward: float, threshold: float = CORRECT_THRESHOLD) -> str:
    """What ``{outcome}`` in a template stands for."""
    return "not graded" if isnan(reward) else "correct" if reward >= threshold else "incorrect"
