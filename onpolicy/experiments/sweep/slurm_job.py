"""What a job of Slurm does: one run of a sweep."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from onpolicy.experiments.sweep.grid import Cell
from onpolicy.experiments.sweep.processes import STOPPED, StopRequest, run_cell
from onpolicy.experiments.sweep.shared_folder import require_shared
from onpolicy.run.run_dir import logged
from onpolicy.utils.errors import UserError

LOOK = 0.5
"""Seconds between two looks at the run."""


def last_step(cell: Cell) -> int:
    """The last step that the run has logged; -1: none."""
    return max((int(row["step"]) for row in logged(cell.folder)), default=-1)


def require_progress(cell: Cell, before: int | None, now: int) -> None:
    """Raises UserError where a run that is to be queued again has logged no step since it last was, ``before``."""
    if before is not None and now <= before:
        where = f"is still at step {now}" if now >= 0 else "has not logged a step"
        raise UserError(
            f"--slurm: {cell.name}: stopped by the cluster twice, and the run {where}. Give it more time=, or more grace= if a step takes "
            "longer than that; the same command goes on."
        )


class SlurmJob:
    """Called by submitit on the node, in the main thread; the run is waited for in another, so that a signal can be handled meanwhile."""

    def __init__(self, cell: Cell, folder: Path, stop: Path, cpus: int, reached: int | None = None) -> None:
        """
        Args:
            cell: the run
            folder: the sweep's working directory
            stop: exists once the sweep's runs are to stop
            cpus: of the job
            reached: the last step that the run had logged when its job was last queued again; None: it was not
        """
        self.cell, self.folder, self.stop, self.cpus, self.reached = cell, folder, stop, cpus, reached

    def __call__(self) -> int:
        """Returns the run's exit status.

        Raises:
            ConfigError: this node does not see the run's folder.
        """
        require_shared(self.cell, str(self.folder), "--slurm")
        os.chdir(self.folder)
        self._request, self._done = StopRequest(), threading.Event()
        self._status: int | BaseException = STOPPED
        threading.Thread(target=self._run, daemon=True).start()
        try:
            self._wait()
        except KeyboardInterrupt:  # cancelled
            self._end_at_once()
        if isinstance(self._status, BaseException):
            raise self._status
        return self._status

    def checkpoint(self) -> Any:
        """What submitit calls before a job is queued again; returns what is to be run then: the same, which goes on from what it saves.

        Raises:
            UserError: the run would go on without an end.
        """
        from submitit.helpers import DelayedSubmission

        self._request.set()
        self._wait()
        reached = last_step(self.cell)
        if self._status != 0 and not self.stop.exists():
            require_progress(self.cell, self.reached, reached)
        return DelayedSubmission(SlurmJob(self.cell, self.folder, self.stop, self.cpus, reached))

    def _run(self) -> None:
        # Slurm may send the signal that is meant for this process to those that it has started as well, which would end them
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            environment = {"OMP_NUM_THREADS": str(self.cpus)} | os.environ
            self._status = run_cell(self.cell, environment, self._request)
        except BaseException as error:
            self._status = error
        finally:
            self._done.set()

    def _wait(self) -> None:
        while not self._done.is_set():
            if self.stop.exists() and not self._request.is_set():
                self._request.set()
            time.sleep(LOOK)

    def _end_at_once(self) -> None:
        """Asked twice, a run stops where it is."""
        self._request.set()
        self._request.set()
        self._done.wait()
