"""Calls a function in a process that can be killed: for libraries that limit their time with signals, which threads lack.

The process reads one JSON request per line and answers with one line; it is started at the first call and kept.
"""

from __future__ import annotations

import atexit
import importlib
import json
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TIMED_OUT = object()
"""The result of a call that was not finished in time."""
LOADING_SECONDS = 300.0
"""Longest time that the process may take to start and to load libraries, on a busy machine."""

_lock = threading.Lock()
_process: subprocess.Popen[str] | None = None
_loaded: set[str] = set()
"""Libraries that the running process has loaded."""


def call_with_deadline(target: str, arguments: list[Any], *, seconds: float, libraries: Sequence[str] = ()) -> Any:
    """Calls ``module:function`` with plain values in the other process; returns TIMED_OUT if it was killed at the deadline.

    Args:
        target: the function, which takes and returns what JSON can hold
        arguments: its arguments
        seconds: the deadline; starting the process and loading ``libraries`` does not count
        libraries: modules that the function will import

    Raises:
        RuntimeError: the process could not be started or died, or the function raised.
    """
    global _process
    with _lock:
        if _process is None or _process.poll() is not None:
            _process = _start()
            _loaded.clear()
        missing = [name for name in libraries if name not in _loaded]
        if missing and _ask(f"{__name__}:load", [missing], LOADING_SECONDS) is TIMED_OUT:
            return TIMED_OUT
        _loaded.update(missing)
        return _ask(target, arguments, seconds)


class _TimeIsUp(BaseException):
    """Raised by the alarm; no ``except Exception`` of a library stops it."""


def time_limit(function: Callable[..., Any], *arguments: Any, seconds: float, libraries: Sequence[str] = ()) -> Any:
    """Calls a function in the main thread; returns TIMED_OUT if an alarm had to end it, and None where it raised or went too deep.

    An alarm that others have set is put back, less the time that has passed.

    Args:
        function: called with ``arguments``
        arguments: its arguments
        seconds: the deadline; loading ``libraries`` does not count, and is not broken off
        libraries: modules that the function will import
    """
    load(libraries)

    def end(*_: Any) -> None:
        raise _TimeIsUp

    started, before = time.monotonic(), signal.signal(signal.SIGALRM, end)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(*arguments)
    except _TimeIsUp:
        return TIMED_OUT
    except Exception:  # text that nobody foresaw is wrong, never an error
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3), interval)


def _ask(target: str, arguments: list[Any], seconds: float) -> Any:
    assert _process is not None and _process.stdin is not None and _process.stdout is not None
    try:
        _process.stdin.write(json.dumps([target, arguments]) + "\n")
        _process.stdin.flush()
        ready, _, _ = select.select([_process.stdout], [], [], seconds)
        if not ready:
            _stop()
            return TIMED_OUT
        reply = json.loads(_process.stdout.readline() or "{}")
    except (OSError, ValueError) as error:
        raise RuntimeError(f"the process that runs {target} broke off: {error}") from error
    if "result" not in reply:
        raise RuntimeError(f"{target} failed in its process: {reply.get('error', 'it ended')}")
    return reply["result"]


def load(libraries: Sequence[str]) -> None:
    """Imports modules."""
    for name in libraries:
        importlib.import_module(name)


def _start() -> subprocess.Popen[str]:
    package = sys.modules[__name__.partition(".")[0]]  # onpolicy, or rewards where it is imported by itself
    root = str(Path(str(package.__file__)).resolve().parent.parent)
    code = f"import sys; sys.path.insert(0, {root!r}); from {__name__} import serve; serve()"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _stop() -> None:
    global _process
    if _process is not None:
        _process.kill()
        _process.wait()
        _process = None


atexit.register(_stop)


def serve() -> None:
    """Answers requests until the input ends; runs in the other process."""
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not pass for a reply
    for line in sys.stdin:
        target, arguments = json.loads(line)
        module, _, name = target.partition(":")
        try:
            reply = {"result": getattr(importlib.import_module(module), name)(*arguments)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
