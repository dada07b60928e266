"""Rewards for processes that annotate: those that can leave the driver's process, and those that cannot. Nothing here loads torch."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def tenths(completion: str, *, scale: float) -> float | None:
    """None for every eleventh length."""
    return scale * (len(completion) % 11) / 10 if len(completion) % 11 else None


def of_a_group(completions: list[Any], log_metric: Any, trainer_state: Any, **kwargs: Any) -> list[float]:
    """In TRL's shape; logs."""
    log_metric("seen", trainer_state.global_step)
    return [float(i) for i, _ in enumerate(completions)]


async def later(completion: str) -> float:
    await asyncio.sleep(0)
    return float(len(completion) % 5)


class Counting:
    """Has a state: how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completion: str) -> float:
        self.calls += 1
        return float(self.calls)


counting = Counting()
bound = Counting().__call__
anonymous = lambda completion: float(len(completion) % 3)  # noqa: E731


def _made(step: float) -> Callable[..., float]:
    def grows(completion: str) -> float:
        return step * (len(completion) % 2)

    return grows


closed_over = _made(0.5)


def _remembering(function: Callable[..., float]) -> Callable[..., float]:
    seen: list[float] = []

    @functools.wraps(function)
    def remembers(completion: str) -> float:
        seen.append(function(completion))
        return sum(seen)

    return remembers


@_remembering
def decorated(completion: str) -> float:
    """Found under its name like a plain function, and has a state."""
    return float(len(completion))


def refusing(completion: str) -> float:
    raise KeyError("no such column")


def refusing_one(completion: str) -> float:
    if completion.startswith("two"):
        raise ValueError(f"cannot grade {completion!r}")
    return 1.0


def loaded(completion: str) -> float:
    """Whether its process has loaded torch."""
    return float("torch" in sys.modules or "transformers" in sys.modules)


def where(completion: str) -> float:
    return float(os.getpid())


def deadly(completion: str, *, driver: int, folder: str) -> float:
    """Kills a process that is not the driver's, and leaves word."""
    if os.getpid() != driver:
        Path(folder, str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(len(completion))
