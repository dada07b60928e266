"""Runs of a sweep as processes on this machine; a lock on a run's log shows that a process is working in its folder."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Protocol

from onpolicy.experiments.sweep.grid import Cell
from onpolicy.utils.device import available_cores
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.signals import wait_for
from onpolicy.utils.terminal import plain

LOOK = 1.0
"""Seconds between two checks of a folder in which another process is working."""
STOPPED = 130
"""Exit status of a run that was told to stop."""


class Runs(Protocol):
    """A place where the runs of a sweep are executed."""

    at_once: int
    """How many runs fit at the same time."""

    def start(self, cell: Cell) -> Future[int]:
        """Starts a run as soon as it fits; the future holds its exit status."""
        ...

    def failure(self, cell: Cell, done: Future[int]) -> str | None:
        """Why a run that has ended failed, in markup; None where it did not.

        Raises:
            ConfigError: no other run can succeed either.
        """
        ...

    def stop(self) -> None:
        """Starts no further runs; those under way finish their step and save. Called again: they end at once, where they can."""
        ...

    def close(self) -> None:
        """Starts no further runs, and waits until those under way have stopped."""
        ...


class StopRequest(threading.Event):
    """Set: runs are to finish their step and save. Set again: they are to end at once."""

    times = 0

    def set(self) -> None:
        self.times += 1
        super().set()


class Processes:
    """Up to ``jobs`` runs at a time, which share the cores."""

    def __init__(self, jobs: int) -> None:
        self.at_once = jobs
        self._pool = ThreadPoolExecutor(jobs)
        self._stop = StopRequest()

    def start(self, cell: Cell) -> Future[int]:
        threads = max(available_cores() // self.at_once, 1)
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ  # what the user has set stays
        return self._pool.submit(run_cell, cell, environment, self._stop)

    def failure(self, cell: Cell, done: Future[int]) -> str | None:
        if done.result():
            return plain(cell.log)
        try:
            return None if cell.finished() else f"{plain(cell.log)} (it ended before its last step)"
        except ConfigError as error:  # the config's file has changed since the sweep began
            return plain(error)

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)


def run_cell(cell: Cell, environment: Mapping[str, str], stop: StopRequest | None = None) -> int:
    """``onpolicy train`` of one cell, its output in ``log.txt``; returns its exit status.

    The run is in a process group of its own: Ctrl-C reaches it through ``stop`` alone, once and not twice.

    The log stays locked as long as the run lives, even if this process dies: a run left over from an earlier sweep is
    waited for, and what it has finished is not run again.
    """
    stop = stop or StopRequest()
    if stop.is_set():
        return STOPPED
    cell.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "onpolicy", "train", str(cell.config), *cell.overrides]
    variables = {**environment, "TOKENIZERS_PARALLELISM": "false"}
    with cell.log.open("a") as log:
        while not _locked(log):
            if stop.wait(LOOK):
                return STOPPED
        if cell.finished():
            return 0
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables, process_group=0) as process:
            try:
                return _wait(process, stop)
            except BaseException:  # only in a main thread: a cancelled Ray task
                stop.set()
                _wait(process, stop)
                raise


def _wait(process: subprocess.Popen[bytes], stop: StopRequest) -> int:
    """Told to terminate, a run stops after its step, with a checkpoint; told again, at once."""
    return wait_for(process, lambda: stop.times, lambda _: process.terminate())


def _locked(file: IO[str]) -> bool:
    """Whether this process now holds the file's lock; on file systems without locks there is nobody to wait for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
