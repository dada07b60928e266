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

from onpolicy.config.registry import ConfigError
from onpolicy.experiments.sweep.grid import Cell
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

    def close(self) -> None:
        """Starts no further runs."""
        ...


class Processes:
    """Up to ``jobs`` runs at a time, which share the cores."""

    def __init__(self, jobs: int) -> None:
        self.at_once = jobs
        self._pool = ThreadPoolExecutor(jobs)
        self._stop = threading.Event()

    def start(self, cell: Cell) -> Future[int]:
        threads = max((os.cpu_count() or 1) // self.at_once, 1)
        return self._pool.submit(run_cell, cell, {**os.environ, "OMP_NUM_THREADS": str(threads)}, self._stop)

    def failure(self, cell: Cell, done: Future[int]) -> str | None:
        if done.result():
            return plain(cell.log)
        try:
            return None if cell.finished() else f"{plain(cell.log)} (it ended before its last step)"
        except ConfigError as error:  # the config's file has changed since the sweep began
            return plain(error)

    def close(self) -> None:
        """Also called when Ctrl-C ends the sweep: runs that wait must not start."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def run_cell(cell: Cell, environment: Mapping[str, str], stop: threading.Event | None = None) -> int:
    """``onpolicy train`` of one cell, its output in ``log.txt``; returns its exit status.

    The log stays locked as long as the run lives, even if this process dies: a run left over from an earlier sweep is
    waited for, and what it has finished is not run again.
    """
    stop = stop or threading.Event()
    cell.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "onpolicy", "train", str(cell.config), *cell.overrides]
    variables = {**environment, "TOKENIZERS_PARALLELISM": "false"}
    with cell.log.open("a") as log:
        while not _locked(log):
            if stop.wait(LOOK):
                return STOPPED
        if cell.finished():
            return 0
        if stop.is_set():
            return STOPPED
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables) as process:
            try:
                return _wait(process)
            except BaseException:  # only in a main thread: a cancelled Ray task
                process.terminate()  # the run stops after its step, with a checkpoint
                _wait(process)
                raise


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits with pauses, in which an interrupt that is not a signal gets through."""
    while True:
        try:
            return process.wait(LOOK)
        except subprocess.TimeoutExpired:
            continue


def _locked(file: IO[str]) -> bool:
    """Whether this process now holds the file's lock; on file systems without locks there is nobody to wait for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
