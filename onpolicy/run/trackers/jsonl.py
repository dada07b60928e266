"""``metrics.jsonl``, and the other files of a run with a line of JSON for each step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from onpolicy.run.trackers.base import Tracker
from onpolicy.types import Metrics
from onpolicy.utils.disk import atomic_write, retry_while_disk_full


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


def _step_of(line: str) -> int | None:
    """The line's step; None for a line that a crash cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def jsonl(run_dir: Path, resume_at: int) -> Tracker:
    """metrics.jsonl in the run folder."""
    return Jsonl(run_dir / "metrics.jsonl", resume_at=resume_at)
