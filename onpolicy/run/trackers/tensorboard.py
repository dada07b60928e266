"""Event files for TensorBoard."""

from __future__ import annotations

import contextlib
from pathlib import Path
from textwrap import indent
from typing import Any

from onpolicy.run.trackers.base import Tracker, config_text
from onpolicy.types import Metrics
from onpolicy.utils.ready import installed, ready_if


class _TensorBoard:
    def __init__(self, run_dir: Path, resume_at: int) -> None:
        self._folder = run_dir / "tensorboard"
        self._writer: Any = self._opened(resume_at + 1 if resume_at else None)
        self._writer.add_text("config", indent(config_text(run_dir), "    "), max(resume_at, 0))

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
