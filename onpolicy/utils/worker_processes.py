"""A few processes of this machine that apply one job to whatever they are sent.

They are started with Python's own command, not by ``multiprocessing``: that would import the user's script again in each of them, and a
script that trains at its top level would train there, too.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any

MOST_LOST = 3
"""Processes that are replaced; after the next one that dies there are none."""
LOOK = 1.0
"""Seconds between two looks of a process at whether the one that started it is there."""
GRACE = 5.0
"""Seconds for a thread to see that its process has ended."""
START = "import sys; sys.path[:] = {path!r}; from onpolicy.utils.worker_processes import serve; serve({fd}, {parent})"


class NotDone(Exception):
    """A task was not done: its process died, or the job raised. Whoever needs the result does it without a process."""


class WorkerProcesses:
    """Each does one task at a time, in its main thread; they end with the process that started them, however that ends."""

    def __init__(self, job: Callable[[Any], Any], count: int, on_lost: Callable[[str], None]) -> None:
        """Returns at once; the processes start in the background.

        Args:
            job: called with each task; can be pickled, as can tasks and results. Where a process has loaded one of its ``unwanted_modules``
                after a task, no process does anything more
            count: number of processes
            on_lost: called with what happened to a process that died or could not start, on a thread of its own
        """
        self._job, self._on_lost = pickle.dumps(job), on_lost
        self._tasks: SimpleQueue[tuple[bytes, Future[Any]] | None] = SimpleQueue()
        self._processes: list[_Process | None] = [None] * count
        self._lock, self._lost, self._closed = threading.Lock(), 0, False
        self._threads = [threading.Thread(target=self._feed, args=(i,), daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Any) -> Future[Any]:
        """The result of the job, which may be ``NotDone``; a task that cannot be pickled is not done either."""
        future: Future[Any] = Future()
        try:
            packed = pickle.dumps(task)
        except Exception as error:  # pickle raises what the task's objects raise
            future.set_exception(NotDone(f"the task cannot be pickled: {error!r}"))
            return future
        with self._lock:
            if self._closed:
                future.set_exception(NotDone("the processes have ended"))
            else:
                self._tasks.put((packed, future))
        return future

    def pids(self) -> list[int]:
        """The processes that are there now."""
        return [process.pid for process in self._processes if process is not None]

    def close(self) -> None:
        """Ends the processes; what was submitted and has no result is not done."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                if process is not None:
                    process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(GRACE)
        while not self._tasks.empty():
            if (item := self._tasks.get()) is not None:
                item[1].set_exception(NotDone("the processes have ended"))

    def _feed(self, place: int) -> None:
        """Hands tasks to one process, and to the next one where it has died."""
        self._start(place)
        while (item := self._tasks.get()) is not None:
            task, future = item
            try:
                future.set_result(self._result(place, task))
            except NotDone as error:
                future.set_exception(error)

    def _result(self, place: int, task: bytes) -> Any:
        process = self._processes[place] or self._start(place)
        if process is None:
            raise NotDone("there is no process")
        try:
            done, result = process.ask(task)
        except Exception as error:  # of a connection that is gone, or of objects that cannot be unpickled
            self._lose(place, f"died (exit status {process.kill()})")
            raise NotDone("its process died") from error
        if done is None:
            process.kill()
            self._lose(place, result, for_good=True)
        if not done:
            raise NotDone(result)
        return result

    def _start(self, place: int) -> _Process | None:
        """None where no more are to be started, or this one could not load the job."""
        process = None
        try:
            with self._lock:
                if self._closed or self._lost > MOST_LOST:
                    return None
                process = self._processes[place] = _Process()
            loaded, why = process.ask(self._job)
        except Exception as error:  # the machine has no room for a process, or it is gone
            loaded, why = (
                False,
                f"{type(error).__name__}: {error}" if process is None else f"exit status {process.kill()}",
            )
        if not loaded:
            if process is not None:
                process.kill()
            self._lose(place, f"could not start: {why}", for_good=loaded is None)
        return self._processes[place]

    def _lose(self, place: int, what: str, *, for_good: bool = False) -> None:
        with self._lock:
            self._processes[place] = None
            before, self._lost = self._lost, MOST_LOST + 1 if for_good else self._lost + 1
            quiet, last = self._closed or (for_good and before > MOST_LOST), self._lost > MOST_LOST
        if not quiet:
            with contextlib.suppress(Exception):  # of whoever is told; the tasks of this thread have to go on
                self._on_lost(f"{what}; {'no more are started' if last else 'another one takes its place'}")


class _Process:
    """One process, and the connection to it. Of another session, so that Ctrl-C in a terminal does not reach it."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        start = START.format(path=sys.path, fd=theirs.fileno(), parent=os.getpid())
        self._process = subprocess.Popen(
            [sys.executable, "-c", start],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.pid = self._process.pid

    def ask(self, message: bytes) -> tuple[bool | None, Any]:
        """Whether it could do it, None if no process should, and the result, or why not; raises EOFError or OSError if it is gone."""
        self._connection.send_bytes(message)
        answer: tuple[bool | None, Any] = self._connection.recv()
        return answer

    def kill(self) -> int:
        """Returns the exit status."""
        self._process.kill()
        return self._process.wait()


def serve(descriptor: int, parent: int) -> None:
    """The work of a process: the first message is the job, each other one a task, until the connection ends."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError), Connection(descriptor) as connection:
        job: Callable[[Any], Any] | None = None
        while True:
            message = connection.recv_bytes()
            try:
                loaded = pickle.loads(message)
                job, result = (loaded, None) if job is None else (job, job(loaded))
                unwanted = sys.modules.keys() & set(getattr(job, "unwanted_modules", ()))
                answer = pickle.dumps((None, f"it has loaded {min(unwanted)}") if unwanted else (True, result))
            except Exception as error:
                answer = pickle.dumps((False, f"{type(error).__name__}: {error}"))
            connection.send_bytes(answer)


def _end_with(parent: int) -> None:
    """A forked process of the parent may keep the connection open after the parent's death, and a task may never end."""
    never = threading.Event()
    while os.getppid() == parent:
        never.wait(LOOK)
    os._exit(1)
