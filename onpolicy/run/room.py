"""Whether disk and host memory have room for a run's checkpoints, asked before its first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from onpolicy.config.schema import Config
from onpolicy.utils.disk import free_bytes
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.host_memory import available_memory

GIB = 2.0**30


def checkpoint_size(trainer: Any) -> tuple[int, int, bool] | None:
    """For ``Trainer.apply``: bytes that resume a run and of the model's folder, and whether both are copied, so that training goes on
    while they are written; None for a user's own trainer."""
    files = getattr(trainer, "files", None)
    return None if files is None else (*files.num_bytes(), files.copies())


def check_room(
    size: tuple[int, int, bool], config: Config, folder: Path, note: Callable[[str], None], free: int | None = None
) -> None:
    """Says what a checkpoint costs where that is not nothing.

    Args:
        size: what ``checkpoint_size`` returned
        config: how many checkpoints are kept
        folder: of the run; what its checkpoints take of the disk is theirs
        note: takes one line for the user
        free: bytes on the disk; None: those that it has

    Raises:
        ConfigError: the checkpoints that are there at a time do not fit on the disk, or the model not into the host's memory.
    """
    state, model, copied = size
    each, number, settings = state + model, num_checkpoints(config), config.checkpoint
    if free is None:
        free = free_bytes(folder)
    free += sum(p.stat().st_size for p in (folder / "checkpoints").rglob("*") if p.is_file())
    if each * number > free:
        fewer = f"checkpoint.keep_last={keep} or " if (keep := _fit(config, each, free)) else ""
        raise ConfigError(
            f"run_dir: {str(folder)!r} has {free / GIB:.1f} GiB of disk for checkpoints, expected {each * number / GIB:.1f}: {number} of "
            f"{each / GIB:.1f} GiB are there at a time (checkpoint.keep_last={settings.keep_last}, and one that is being written); "
            f"give it {fewer}a larger disk"
        )
    memory = available_memory()
    if model > memory:
        raise ConfigError(
            f"model.path: a checkpoint holds the model in the host's memory, {model / GIB:.1f} GiB, and {memory / GIB:.1f} are free; "
            "expected a machine with more memory, or a smaller model"
        )
    if not copied and each > GIB:
        note(
            f"a checkpoint of {each / GIB:.1f} GiB is written while training waits ({memory / GIB:.1f} GiB of host memory are free)"
        )


def num_checkpoints(config: Config) -> int:
    """How many checkpoints are on the disk at a time, one that is being written among them."""
    settings = config.checkpoint
    saved = config.steps // settings.every + bool(config.steps % settings.every) if settings.every else 1
    saved += config.distributed.num_trainers > 0  # where ranks may be lost, step 0 is saved too
    return min(settings.keep_last + 1 + (settings.best_metric is not None), saved)


def _fit(config: Config, each: int, free: int) -> int:
    """The largest ``keep_last`` below the run's with which its checkpoints fit; 0 where there is none."""
    others = 1 + (config.checkpoint.best_metric is not None)
    return next((n for n in range(config.checkpoint.keep_last - 1, 0, -1) if each * (n + others) <= free), 0)
