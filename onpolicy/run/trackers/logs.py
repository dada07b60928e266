"""The open files and trackers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onpolicy.config.registry import Plugin
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.run.trackers.base import Continued, Tracker
from onpolicy.run.trackers.jsonl import Jsonl, jsonl
from onpolicy.types import Metrics
from onpolicy.utils.errors import ConfigError, UserError, first_line


@dataclass(frozen=True)
class Logs:
    """The open files and trackers of a run."""

    trackers: Sequence[Tracker]
    samples: Jsonl
    tokens: Jsonl


@dataclass(frozen=True)
class Unopened:
    """In place of a tracker that a run that goes on could not open."""

    error: Exception

    def log(self, step: int, metrics: Metrics) -> None:
        raise self.error

    def close(self) -> None:
        pass


def open_logs(resolved: ResolvedConfig, folder: Path, step: int, *, begins: bool = False) -> Logs:
    """Opens what a run writes in its folder, with what was logged after ``step`` taken out.

    Args:
        resolved: the config
        folder: the run's
        step: its last checkpoint; -1: none
        begins: it has no checkpoint and was started just now: it is not the run that trackers know of this folder

    Raises:
        ConfigError: a tracker of a run that begins cannot be opened.
    """
    if begins:
        (folder / Continued.FILE).unlink(missing_ok=True)
    return Logs(
        trackers=[_opened(tracker, folder, step, begins) for tracker in resolved.trackers],
        samples=Jsonl(folder / "samples.jsonl", resume_at=step),
        tokens=Jsonl(folder / "tokens.jsonl", resume_at=step),
    )


def _opened(tracker: Plugin, folder: Path, step: int, begins: bool) -> Tracker:
    """Where a run begins every mistake is an error; later, a service that is away costs its numbers and not the run."""
    if tracker.function is jsonl:
        return jsonl(folder, step)
    try:
        return tracker.bind()(folder, step)  # type: ignore[no-any-return]
    except UserError:
        raise
    except Exception as error:
        if begins:
            raise ConfigError(
                f"{tracker.key}: {tracker.name} could not be opened ({type(error).__name__}: {first_line(error)}); "
                "logging.trackers=[jsonl] does without it"
            ) from error
        return Unopened(error)
