"""How a worker and its driver talk, and how a worker measures its memory. Needs the standard library alone.

One JSON object a line: commands on stdin, answers on stdout after `@@`. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PREFIX = "@@"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Quit(Exception):
    """The driver has had enough."""


class Channel:
    """A worker's end."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def read(self) -> dict[str, Any]:
        """The next command; `quit` when the driver is gone."""
        line = sys.stdin.readline()
        return json.loads(line) if line else {"do": "quit"}

    def answer(self, **fields: Any) -> None:
        print(PREFIX + json.dumps(fields), file=self._answers, flush=True)

    def wait_for_step(self) -> None:
        """Returns when the driver wants a step; raises Quit when it has had enough."""
        if self.read()["do"] == "quit":
            raise Quit


def serve(work: Callable[[Channel], None]) -> None:
    """A worker's whole life; what goes wrong is told to the driver."""
    channel = Channel()
    try:
        work(channel)
    except Quit:
        pass
    except Exception as error:
        traceback.print_exc()
        channel.answer(error=f"{type(error).__name__}: {error}")


class PeakMemory:
    """Resident memory of this process from now on, MiB: `start` is what it holds now, `above` what it has needed more."""

    def __init__(self) -> None:
        CLEAR.write_text("5")  # the kernel's high-water mark falls to what is resident now
        self.start = _resident("VmRSS")

    def above(self) -> float:
        return _resident("VmHWM") - self.start


def _resident(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found.group(1)) / 1024
