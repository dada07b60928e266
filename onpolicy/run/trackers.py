"""Where metrics go; plug-ins of the kind ``tracker``: ``(run_dir, *, options) -> Tracker``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.types import Metrics
from onpolicy.utils.disk import atomic_write, retry_while_disk_full
from onpolicy.utils.ready import installed, ready_if


class Tracker(Protocol):
    def log(self, step: int, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Logs:
    """The open files and trackers of a run."""

    trackers: Sequence[Tracker]
    samples: Jsonl
    tokens: Jsonl


class Jsonl:
    """A file with one line of JSON a step; lines are written whole, and are on disk before the next step starts."""

    def __init__(self, path: Path, *, resume_at: int) -> None:
        """Removes the lines after ``resume_at``: their steps will be run again."""
        if path.exists():
            before = path.read_text()
            steps = {line: _step_of(line) for line in before.splitlines()}
            kept = "".join(f"{line}\n" for line, step in steps.items() if step is not None and step <= resume_at)
            if kept != before:
                atomic_write(path, kept)
        self.path, self._file = path, path.open("ab", buffering=0)

    def log(self, step: int, metrics: Metrics) -> None:
        self.write({"step": step, **metrics})

    @retry_while_disk_full(lambda self, row: self.path)
    def write(self, row: dict[str, Any]) -> None:
        """Writes one line, or nothing where it cannot be written whole.

        Raises:
            OSError: nothing was written.
        """
        line = (json.dumps(row) + "\n").encode()
        end = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()


def open_logs(resolved: ResolvedConfig, folder: Path, step: int) -> Logs:
    """Opens what a run writes in its folder, with what was logged after ``step`` taken out."""
    return Logs(
        trackers=[tracker.bind()(folder, step) for tracker in resolved.trackers],
        samples=Jsonl(folder / "samples.jsonl", resume_at=step),
        tokens=Jsonl(folder / "tokens.jsonl", resume_at=step),
    )


def _step_of(line: str) -> int | None:
    """The line's step; None for a line that a crash cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def jsonl(run_dir: Path, resume_at: int) -> Tracker:
    """metrics.jsonl in the run folder."""
    return Jsonl(run_dir / "metrics.jsonl", resume_at=resume_at)


class _TensorBoard:
    def __init__(self, run_dir: Path, resume_at: int) -> None:
        self._folder = run_dir / "tensorboard"
        self._writer: Any = self._opened(resume_at + 1 if resume_at else None)

    def log(self, step: int, metrics: Metrics) -> None:
        """Writes the metrics; starts a new file where the last one could not be written."""
        self._writer = self._writer or self._opened(step)
        try:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
        except Exception:
            with contextlib.suppress(Exception):  # its thread has ended, and what it had queued is lost
                self._writer.close()
            self._writer = None
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _opened(self, purge_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._folder, purge_step=purge_step)  # type: ignore[no-untyped-call]


@ready_if(installed("tensorboard", "pip install tensorboard, or logging.trackers=[jsonl]"))
def tensorboard(run_dir: Path, resume_at: int) -> Tracker:
    """Event files in the run folder, for `tensorboard --logdir`."""
    return _TensorBoard(run_dir, resume_at)


class _Wandb:
    def __init__(self, run_dir: Path, project: str, mode: str) -> None:
        import wandb

        self._run = wandb.init(
            project=project, dir=run_dir, name=run_dir.name, id=run_dir.name, resume="allow", mode=mode
        )

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


@ready_if(installed("wandb", "pip install wandb, or logging.trackers=[jsonl]"))
def wandb(run_dir: Path, resume_at: int, *, project: str = "onpolicy", mode: str = "online") -> Tracker:
    """Weights & Biases; needs `pip install wandb`.

    Args:
        project: W&B project
        mode: `online`, `offline` or `disabled`
    """
    return _Wandb(run_dir, project, mode)
