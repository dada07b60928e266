"""Errors of Ray actors and tasks reach the driver as they were raised: with their type and their attributes."""

from __future__ import annotations

import copyreg
import os
import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def picklable_errors() -> Iterator[None]:
    """Around work in an actor or a task: what it raises is ``RayTaskError.cause`` in the driver, its traceback a note.

    An exception whose ``__init__`` pickle cannot call is taken apart instead; if that fails too, a ``RuntimeError`` stands in for it.
    """
    try:
        yield
    except Exception as error:
        trace = f"in process {os.getpid()}:\n{traceback.format_exc()}"
        error.add_note(trace)
        if not _survives(error):
            copyreg.pickle(type(error), _reduce)  # type: ignore[arg-type]
        if not _survives(error):
            substitute = RuntimeError(f"{type(error).__name__}: {error}")
            substitute.add_note(trace)
            raise substitute from None
        raise


def one_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _survives(error: Exception) -> bool:
    try:
        return str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:
        return False


def _reduce(error: Exception) -> tuple[Any, ...]:
    return _rebuild, (type(error), error.args, dict(error.__dict__))


def _rebuild(kind: type[Exception], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error
