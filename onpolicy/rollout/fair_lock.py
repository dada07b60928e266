"""A lock around an engine: one thread at a time, in the order in which they asked."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Closed(RuntimeError):
    """The generator was closed while a thread was waiting to use it."""


class FairLock:
    """A lock that is granted to the thread that has waited longest.

    With an ordinary lock, threads that sample could take it from one another for as long as they sample, and an update of the
    weights might never get it.
    """

    def __init__(self) -> None:
        self.closed = False
        self._queue: deque[threading.Lock] = deque()
        self._lock = threading.Lock()
        """Held to read or write the queue."""

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Raises Closed once ``close`` was called."""
        with self._in_order():
            if self.closed:
                raise Closed("the generator was closed")
            yield

    def close(self) -> None:
        """Grants it to no one any more; returns when the last holder has released it."""
        self.closed = True
        with self._in_order():
            pass

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        mine = threading.Lock()
        mine.acquire()
        with self._lock:
            self._queue.append(mine)
            if self._queue[0] is mine:
                mine.release()
        try:
            mine.acquire()
            yield
        finally:  # also where an interrupt ended the wait
            with self._lock:
                first = self._queue[0] is mine
                self._queue.remove(mine)
                if first and self._queue:
                    self._queue[0].release()
