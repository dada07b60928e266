"""Files of JSON lines that a run appends to, read on from where the last look ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TAIL = 256
"""Bytes before the end of what was read, by which a file is known again."""


class GrowingFile:
    """The whole lines of a file; a run that resumes writes it anew, and then all of it is read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        """After the last whole line that was read."""
        self.generation = 0
        """How often the file was written anew."""
        self._file: int | None = None
        self._tail = b""

    def begin_again(self) -> bool:
        """Whether the file is another one than that which was read, or shorter, or gone: then it is read from its start."""
        if not self.end:
            return False
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino == self._file and stat.st_size >= self.end and self._before(file) == self._tail:
                    return False
        except OSError:
            pass
        self.end, self._tail = 0, b""
        self.generation += 1
        return True

    def new_lines(self) -> Iterator[tuple[int, bytes]]:
        """Where each line starts that was completed since the last look, and the line; a last line without its end waits."""
        try:
            file = self.path.open("rb")
        except OSError:
            return
        with file:
            self._file = os.fstat(file.fileno()).st_ino
            file.seek(self.end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                start, self.end = self.end, self.end + len(line)
                self._tail = (self._tail + line[-TAIL:])[-TAIL:]
                yield start, line

    def _before(self, file: IO[bytes]) -> bytes:
        file.seek(self.end - len(self._tail))
        return file.read(len(self._tail))


def object_of(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds; None where it holds none with a step, whatever it was that wrote it."""
    try:
        row = json.loads(line)
        int(row["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    return row if isinstance(row, dict) else None
