"""Runs what a reward has left to await, from code that is not asynchronous."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Sequence
from typing import Any


def await_all(values: Sequence[Any]) -> list[Any]:
    """The values, with awaitable ones run to their results, together; an exception stands in the place of the result that it prevented.

    All of a process run in one event loop on a thread of its own, so that clients which belong to a loop can be kept between calls, and
    the calling thread may have a loop that is running.
    """
    if not any(map(inspect.isawaitable, values)):
        return list(values)
    future = asyncio.run_coroutine_threadsafe(_gather(values), _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:  # Ctrl-C while waiting
        future.cancel()
        raise


async def _gather(values: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*map(_result, values), return_exceptions=True)


async def _result(value: Any) -> Any:
    try:
        return await value if inspect.isawaitable(value) else value
    except asyncio.CancelledError as error:
        raise RuntimeError("it was cancelled") from error


_starting = threading.Lock()


def _loop(process: int) -> asyncio.AbstractEventLoop:
    with _starting:
        return _loop_of(process)


@functools.cache
def _loop_of(process: int) -> asyncio.AbstractEventLoop:
    """The loop of a process; a fork has no thread that would run its parent's."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop
