"""What an actor's call came to: an answer, or an exception that arrives in the driver as it was raised."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raised:
    """An exception taken apart: many have an ``__init__`` that pickle cannot call."""

    kind: type[Exception]
    args: tuple[Any, ...]
    state: Mapping[str, Any]
    trace: str

    def error(self) -> Exception:
        """The exception again, with the traceback of its process as a note."""
        error = self.kind.__new__(self.kind, *self.args)
        error.__dict__.update(self.state)
        error.add_note(self.trace)
        return error


def outcome(call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """What ``call`` returns, or a ``Raised``."""
    try:
        return call(*args, **named)
    except Exception as error:
        trace = f"in process {os.getpid()}:\n{traceback.format_exc()}"
        raised = Raised(type(error), error.args, dict(error.__dict__), trace)
        try:
            pickle.loads(pickle.dumps(raised)).error()
        except Exception:
            return Raised(RuntimeError, (f"{type(error).__name__}: {error}",), {}, trace)
        return raised
