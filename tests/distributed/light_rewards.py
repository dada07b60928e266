"""Rewards for the workers of test_reward_tasks.py; nothing here loads torch."""

from __future__ import annotations

import asyncio
import functools
import os
import time
import uuid
from pathlib import Path
from typing import Any


def sometimes(completion: str, *, share: float) -> float | None:
    return share * len(completion) if "wait" in completion else None


async def later(completion: str) -> dict[str, float]:
    """Asynchronous, in verl's shape."""
    await asyncio.sleep(0)
    return {"score": float(len(completion))}


async def of_a_group(completions: list[Any], trainer_state: Any, log_metric: Any, **kwargs: Any) -> list[float | None]:
    """Asynchronous, in TRL's shape; nothing to grade in the last rollout."""
    log_metric("step", trainer_state.global_step / trainer_state.max_steps)
    return [1.0] * (len(completions) - 1) + [None]


def dying(completion: str, fields: dict[str, Any], *, file: str, how: str) -> float:
    """Ends or holds up its process, as often as the file has letters; a file ``hangs`` beside it says so."""
    path = Path(file)
    left = path.read_text()
    if completion == "deadly" and left:
        path.write_text(left[1:])
        if how == "dies":
            os._exit(1)
        path.with_name("hangs").touch()
        time.sleep(1000)
    return float(len(completion))


def refusing(completion: str) -> float:
    raise KeyError("no such column")


def meeting(completion: str, *, folder: str) -> float:
    """The process that computes it, once a second one has been here too."""
    (Path(folder) / str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < 2:
        time.sleep(0.02)
    return float(os.getpid())


def blocking(completion: str, *, folder: str) -> float:
    """Says which process it is in, and does not return."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(1000)
    return 0.0


def heavy(completion: str, *, folder: str) -> float:
    """Whether its process has loaded torch; what it needs is loaded once per process, as users' rewards do."""
    load(folder)
    return float("libtorch" in Path("/proc/self/maps").read_text())


@functools.cache
def load(folder: str) -> None:
    (Path(folder) / uuid.uuid4().hex).write_text(str(os.getpid()))
