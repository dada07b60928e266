"""What the processes of test_worker_processes.py do."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from pathlib import Path
from typing import Any


def work(task: tuple[str, Any]) -> Any:
    what, value = task
    match what:
        case "square":
            return value * value
        case "refuse":
            raise ValueError(f"no {value}")
        case "unpicklable":
            return lambda: 0
        case "pid":
            return os.getpid()
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hold":
            _write(Path(value), str(os.getpid()))
            threading.Event().wait()
    raise AssertionError(what)


def _write(path: Path, text: str) -> None:
    """There is no moment at which the file is there without its text."""
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


class Unwanted:
    """Its tasks name modules to load."""

    unwanted_modules = ("wave", "sndhdr")

    def __call__(self, task: str) -> str:
        return importlib.import_module(task).__name__


class Unloadable:
    def __call__(self, task: Any) -> Any:
        return task

    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> Any:
    raise ImportError("not here")
