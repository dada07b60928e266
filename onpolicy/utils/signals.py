"""Ctrl-C, SIGTERM and a closed terminal as requests rather than accidents."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals by which a user, a scheduler, and a terminal that closes say that this is to end."""
_LOOK = 1.0
"""Seconds between two checks of whether the user has asked for anything."""


class Stopped(KeyboardInterrupt):
    """The user stopped a command that goes on where it was when it is called again: with these words, without any with its own."""


@contextmanager
def on_interrupt(handler: Callable[[], None]) -> Iterator[None]:
    """Calls ``handler`` on Ctrl-C, SIGTERM and a closed terminal while inside; outside the main thread signals are left alone."""

    def call(number: int, frame: FrameType | None) -> None:
        handler()

    try:
        numbers = [n for n in STOPS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]  # nohup
        before = {number: signal.signal(number, call) for number in numbers}
    except ValueError:  # signals can only be set in the main thread
        before = {}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def resumable() -> Iterator[None]:
    """For commands that, called again, go on where they were: SIGTERM and a closed terminal end them as Ctrl-C does.

    Raises:
        Stopped: the user has stopped the command.
    """
    with on_interrupt(_interrupt):
        try:
            yield
        except Stopped:
            raise
        except KeyboardInterrupt:
            raise Stopped from None


def wait_for(process: subprocess.Popen[bytes], asked: Callable[[], int], hand_on: Callable[[int], None]) -> int:
    """Waits for a process, and hands on what is asked for meanwhile; returns its exit status.

    Args:
        process: what is waited for, with pauses in which an interrupt that is not a signal gets through
        asked: how often the user has asked the process to stop
        hand_on: called for each time, with its number from 1 on
    """
    handed_on = 0
    while True:
        if handed_on < asked():
            handed_on += 1
            hand_on(handed_on)
        try:
            return process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            continue


def _interrupt() -> None:
    raise KeyboardInterrupt
