"""Where metrics go; plug-ins of the kind ``tracker``: ``(run_dir, *, options) -> Tracker``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from onpolicy.types import Metrics


class Tracker(Protocol):
    def log(self, step: int, metrics: Metrics) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Logs:
    """Everything a run writes while it goes on."""

    trackers: Sequence[Tracker]
    samples: Jsonl
    tokens: Jsonl

    def close(self) -> None:
        for log in (*self.trackers, self.samples, self.tokens):
            log.close()


class Jsonl:
    """One line of JSON a step; whole lines only, on disk before the next step starts."""

    def __init__(self, path: Path, *, resume_at: int) -> None:
        """Lines after ``resume_at`` belong to steps that will be run again; they go."""
        self._path = path
        if path.exists():
            steps = {line: _step_of(line) for line in path.read_text().splitlines()}
            path.write_text(
                "".join(f"{line}\n" for line, step in steps.items() if step is not None and step <= resume_at)
            )
        self._file = path.open("a")

    def log(self, step: int, metrics: Metrics) -> None:
        self.write({"step": step, **metrics})

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _step_of(line: str) -> int | None:
    """None for a line that a crash cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def jsonl(run_dir: Path, resume_at: int) -> Tracker:
    """metrics.jsonl in the run folder."""
    return Jsonl(run_dir / "metrics.jsonl", resume_at=resume_at)


class _TensorBoard:
    def __init__(self, run_dir: Path, resume_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run_dir / "tensorboard", purge_step=resume_at + 1 if resume_at else None)  # type: ignore[no-untyped-call]

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


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


def wandb(run_dir: Path, resume_at: int, *, project: str = "onpolicy", mode: str = "online") -> Tracker:
    """Weights & Biases; needs `pip install wandb`.

    Args:
        project: W&B project
        mode: `online`, `offline` or `disabled`
    """
    return _Wandb(run_dir, project, mode)
