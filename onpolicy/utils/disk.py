"""A disk that is full: how it is told from other faults, and how a run waits for room instead of ending."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from onpolicy.utils.errors import UserError

T = TypeVar("T")

LIMIT = 600.0
"""Seconds that a run waits for room before it ends with an error."""
PAUSE = 3.0
"""Seconds between two attempts."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, the quota, or what one file may hold."""


class DiskFull(UserError, RuntimeError):
    """There was no room for a file of the run; names it and what is still there."""


def is_full(error: BaseException | None) -> bool:
    """Whether this, or what it came from, says that there is no room; libraries written in Rust say it in words."""
    while error is not None:
        said = re.search(r"\(os error (\d+)\)", str(error))
        if (error.errno if isinstance(error, OSError) else said and int(said.group(1))) in FULL:
            return True
        error = error.__cause__
    return False


def write_whole(path: Path, text: str) -> None:
    """The file has either its old content or the new one, whatever happens meanwhile.

    Raises:
        OSError: names the file.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def free(folder: Path) -> str:
    """What the disk under a folder, which need not exist yet, has left."""
    there = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path.cwd())
    return f"{shutil.disk_usage(there).free / 2**30:.1f} GiB free"


class Room:
    """Calls what writes a file, again and again while the disk is full."""

    def __init__(self, say: Callable[[str], None], kept: Callable[[], str] = lambda: "") -> None:
        """
        Args:
            say: takes one line
            kept: says what is there if the run ends here
        """
        self._say, self._kept = say, kept
        self.interrupted: Callable[[], bool] = lambda: False
        """Whether the user has asked the run to stop; to ask while it waits ends the waiting."""

    def __call__(self, path: Path, write: Callable[[], T]) -> T:
        """What ``write`` returns; it must leave things as they were where it fails.

        Raises:
            DiskFull: there was no room for too long, or the user did not want to wait.
            CheckpointError: the same, where a checkpoint was to be written.
        """
        try:
            return write()
        except Exception as error:
            if not is_full(error):
                raise
            reason = error
        asked, since = self.interrupted(), time.monotonic()
        self._say(f"disk full: waiting for room in {path.parent} ({free(path.parent)}; {reason})")
        while self._goes_on(asked, since):
            try:
                written = write()
            except Exception as error:
                if not is_full(error):
                    raise
                reason = error
            else:
                self._say(f"there is room again after {time.monotonic() - since:.0f} s; the run goes on")
                return written
        if not isinstance(reason, OSError):
            raise reason
        raise DiskFull(
            f"could not write {str(path)!r}: {reason} ({free(path.parent)}), "
            f"waited {time.monotonic() - since:.0f} s for room" + (f"; {kept}" if (kept := self._kept()) else "")
        ) from reason

    def _goes_on(self, asked: bool, since: float) -> bool:
        """Waits until it is time for another attempt; False where there is to be none."""
        end = min(time.monotonic() + PAUSE, since + LIMIT)
        while time.monotonic() < end:
            if self.interrupted() and not asked:
                return False
            time.sleep(min(0.1, PAUSE))
        return end < since + LIMIT
