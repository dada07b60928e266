"""Which actors are lost: those that died, that do not answer, or that answer and make no progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

STARTUP_FACTOR = 10
"""An actor or worker that loads a model may take this many times ``distributed.heartbeat_timeout_s``."""
INTERVAL = 1.0
"""Seconds between two heartbeats of an actor; a quarter of the timeout if that is shorter."""


class Deadline:
    """A timeout that can be extended, and that does not count time in which this process itself was suspended.

    It has to be read more often than twice per timeout.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.extend()

    def extend(self) -> None:
        """Starts again from 0."""
        self._start = self._read = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the last ``extend``."""
        now = time.monotonic()
        if now - self._read > self.seconds / 2:  # nobody read it: this process was suspended
            self._start = now
        self._read = now
        return now - self._start

    def passed(self) -> bool:
        return self.elapsed() > self.seconds


@dataclass(frozen=True)
class Failure:
    """What a monitor found."""

    index: int
    """Of the actor."""
    kind: Literal["died", "silent", "stalled"]
    """``silent``: it does not answer; ``stalled``: all answer and none makes progress, and this one answered longest ago."""
    error: BaseException | None = None


class HeartbeatMonitor:
    """Asks actors for their ``heartbeat`` and watches that at least one of them makes progress."""

    def __init__(self, actors: Sequence[Any], timeout: float) -> None:
        """
        Args:
            actors: work together, so that the progress of one is the progress of all
            timeout: seconds without an answer, or without progress, after which an actor is lost
        """
        self._actors, self.timeout = list(actors), timeout
        self._pending: dict[int, Any] = {}
        self._asked_at = [0.0] * len(self._actors)
        self._progress: list[Any] = [None] * len(self._actors)
        self._answers = [Deadline(timeout) for _ in self._actors]
        self._progressing = Deadline(timeout)

    def report_progress(self) -> None:
        """Work was begun or has been answered."""
        self._progressing.extend()

    def poll(self, *, busy: bool = True) -> Failure | None:
        """Sends heartbeats and reads those that have come back; returns at once.

        Args:
            busy: whether the actors have work; without work an answer alone counts as progress
        """
        import ray

        for index in range(len(self._actors)):
            try:
                self._ask(index, busy)
            except ray.exceptions.RayError as error:
                return Failure(index, "died", error)
        silence, stalled = [answer.elapsed() for answer in self._answers], self._progressing.elapsed()
        index = max(range(len(silence)), key=silence.__getitem__)
        if silence[index] > self.timeout:
            return Failure(index, "silent")
        return Failure(index, "stalled") if stalled > self.timeout else None

    def _ask(self, index: int, busy: bool) -> None:
        import ray

        if index not in self._pending:
            if time.monotonic() - self._asked_at[index] > min(INTERVAL, self.timeout / 4):
                self._asked_at[index] = time.monotonic()
                self._pending[index] = self._actors[index].heartbeat.remote()
            return
        if not ray.wait([self._pending[index]], timeout=0)[0]:
            return
        progress = ray.get(self._pending.pop(index))
        self._answers[index].extend()
        if progress != self._progress[index] or not busy:
            self._progress[index] = progress
            self._progressing.extend()
