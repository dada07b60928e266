"""Runs of a sweep as processes of this machine; a run's log shows who is at work in its folder."""

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
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.terminal import plain

LOOK = 1.0
"""Seconds between two looks at a folder in which another process is at work."""
STOPPED = 130
"""Exit status of a run that was to stop."""


class Runs(Protocol):
    """Where the runs of a sweep go."""

    at_once: int
    """How many there is room for side by side."""

    def start(self, cell: Cell) -> Future[int]:
        """Begins a run, as soon as there is room; comes to its exit status."""
        ...

    def failure(self, cell: Cell, done: Future[int]) -> str | None:
        """Why a run that has ended failed, in markup; None where it did not.

        Raises:
            ConfigError: no other run can end well either.
        """
        ...

    def close(self) -> None:
        """Starts nothing any more."""
        ...


class Processes:
    """So many at a time, which share the cores."""

    def __init__(self, jobs: int) -> None:
        self.at_once = jobs
        self._pool = ThreadPoolExecutor(jobs)
        self._stop = threading.Event()

    def start(self, cell: Cell) -> Future[int]:
        threads = max((os.cpu_count() or 1) // self.at_once, 1)
        return self._pool.submit(run, cell, {**os.environ, "OMP_NUM_THREADS": str(threads)}, self._stop)

    def failure(self, cell: Cell, done: Future[int]) -> str | None:
        if done.result():
            return plain(cell.log)
        try:
            return None if cell.finished() else f"{plain(cell.log)} (it ended before its last step)"
        except ConfigError as error:  # the config's file has changed since the sweep began
            return plain(error)

    def close(self) -> None:
        """Also where Ctrl-C ends the sweep: what waits must not start."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def run(cell: Cell, environment: Mapping[str, str], stop: threading.Event | None = None) -> int:
    """``onpolicy train`` of one cell, its output in ``log.txt``; returns its exit status.

    The log stays locked as long as the run lives, whatever becomes of this process: a run that an earlier sweep left
    behind is waited for, and what it has finished is not run again.
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
            except BaseException:  # only in a main thread: a task of Ray that is called off
                process.terminate()  # the run stops after its step, with a checkpoint
                _wait(process)
                raise


def _wait(process: subprocess.Popen[bytes]) -> int:
    """With pauses in which an interrupt is heard that is no signal."""
    while True:
        try:
            return process.wait(LOOK)
        except subprocess.TimeoutExpired:
            continue


def _locked(file: IO[str]) -> bool:
    """Whether the file is ours alone now; file systems without locks have nobody to wait for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
