"""The replica's end of a weight transfer: the trainer calls once for each part, and the engine takes all parts in one turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any

Receive = Callable[[Iterator[dict[str, Any]], int], None]
"""Takes what the trainer says of each part, and the version; returns when all are loaded."""


class WeightReceiver:
    """Calls that belong together, on one thread: the engine must not sample between two parts, and its lock is a thread's.

    A trainer that is lost in between leaves the thread waiting with half of the weights: whoever supervises the replica replaces it.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._parts: SimpleQueue[tuple[dict[str, Any], Future[None]] | None] = SimpleQueue()
        self._whole: Future[None] = Future()
        """Done when the engine has all parts, or has refused one."""

    def begin(self, version: int) -> None:
        self._parts, self._whole = SimpleQueue(), Future()
        Thread(target=self._take_all, args=(version, self._parts, self._whole), daemon=True).start()

    def take(self, part: dict[str, Any]) -> None:
        """Returns when the engine has loaded it; raises what the engine did."""
        taken: Future[None] = Future()
        self._parts.put((part, taken))
        wait([taken, self._whole], return_when=FIRST_COMPLETED)
        if not taken.done():
            self._whole.result()

    def end(self) -> None:
        """Returns when the engine samples with the new weights; raises what it did."""
        self._parts.put(None)
        self._whole.result()

    def _take_all(self, version: int, parts: SimpleQueue[Any], whole: Future[None]) -> None:
        try:
            arriving = _arriving(parts)
            self._receive(arriving, version)
            if next(arriving, None) is not None:
                raise RuntimeError("the engine says that it has all weights, and has not taken all of them")
            whole.set_result(None)
        except BaseException as error:
            whole.set_exception(error)


def _arriving(parts: SimpleQueue[Any]) -> Iterator[dict[str, Any]]:
    """Each part when it is there; asking for the next says that one is loaded."""
    while (item := parts.get()) is not None:
        part, taken = item
        yield part
        taken.set_result(None)
