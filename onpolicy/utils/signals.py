"""Ctrl-C and SIGTERM as a request rather than an accident."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_interrupt(handler: Callable[[], None]) -> Iterator[None]:
    """Calls ``handler`` on Ctrl-C and SIGTERM while inside; outside the main thread signals are left alone."""

    def call(number: int, frame: FrameType | None) -> None:
        handler()

    try:
        before = {number: signal.signal(number, call) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals can only be set in the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
