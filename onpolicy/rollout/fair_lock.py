"""Who may touch an engine: one thread at a time, in the order in which they asked."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Closed(RuntimeError):
    """The generator was closed while somebody was sampling."""


class FairLock:
    """A lock that goes to whoever has waited longest.

    With an ordinary one, threads that sample would take it from one another for as long as they sample, and new weights
    might never get in.
    """

    def __init__(self) -> None:
        self.closed = False
        self._line: deque[threading.Lock] = deque()
        self._lock = threading.Lock()
        """Of the line itself."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Raises Closed once ``close`` was called."""
        with self._in_order():
            if self.closed:
                raise Closed("the generator was closed")
            yield

    def close(self) -> None:
        """Nobody gets a turn any more; returns when the last one has ended."""
        self.closed = True
        with self._in_order():
            pass

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        mine = threading.Lock()
        mine.acquire()
        with self._lock:
            self._line.append(mine)
            if self._line[0] is mine:
                mine.release()
        try:
            mine.acquire()
            yield
        finally:  # also where an interrupt ended the waiting
            with self._lock:
                first = self._line[0] is mine
                self._line.remove(mine)
                if first and self._line:
                    self._line[0].release()
