"""Files that are written whole, and writes that wait while the disk is full instead of ending the run."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from onpolicy.utils.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

LIMIT = 600.0
"""Seconds that a run waits for disk space before it ends with an error."""
PAUSE = 3.0
"""Seconds between two attempts."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, the quota is used up, or the file would be larger than allowed."""


class DiskFull(UserError, RuntimeError):
    """A file of the run could not be written because the disk is full; names the file and what can be resumed from."""


def is_full(error: BaseException | None) -> bool:
    """Whether this error, or one of its causes, says that the disk is full; libraries written in Rust say it in words."""
    while error is not None:
        said = re.search(r"\(os error (\d+)\)", str(error))
        numbers = (error.errno if isinstance(error, OSError) else None, said and int(said.group(1)))
        if any(number in FULL for number in numbers):
            return True
        error = error.__cause__
    return False


def os_error(number: int | None, text: str) -> OSError:
    """An error of the system that was met elsewhere, e.g. by another process; without a number where a library gave none."""
    return OSError(number, text.replace(f"[Errno {number}] ", "")) if number else OSError(text)


def atomic_write(path: Path, text: str) -> None:
    """Writes a file so that it always has either its old content or the new one, also after a crash.

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


def free_bytes(folder: Path) -> int:
    """What the disk under a folder, which need not exist yet, has left."""
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path.cwd())
    return shutil.disk_usage(existing).free


def free_space(folder: Path) -> str:
    """``free_bytes`` for the user."""
    return f"{free_bytes(folder) / 2**30:.1f} GiB free"


@dataclass(frozen=True)
class _Waiting:
    note: Callable[[str], None]
    kept: Callable[[], str]
    interrupted: Callable[[], bool]


_waiting: ContextVar[_Waiting | None] = ContextVar("waiting_for_disk_space", default=None)


@contextlib.contextmanager
def waiting_for_disk_space(
    note: Callable[[str], None],
    *,
    kept: Callable[[], str] = lambda: "",
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Inside, functions decorated with ``retry_while_disk_full`` wait for up to ``LIMIT`` seconds; outside they raise at once.

    Args:
        note: takes one line that tells the user of the wait
        kept: says what can be resumed from if the run ends here
        interrupted: whether the user has asked the run to stop; asking while it waits ends the wait
    """
    token = _waiting.set(_Waiting(note, kept, interrupted))
    try:
        yield
    finally:
        _waiting.reset(token)


def retry_while_disk_full(path_of: Callable[..., Path]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a function that writes a file, so that it is called again and again while the disk is full.

    The function must leave things as they were where it fails. Where the wait was in vain it raises ``DiskFull``, or its own
    error if that is not an ``OSError`` (a checkpoint's names what is still there).

    Args:
        path_of: the function's arguments -> the file
    """

    def decorate(write: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(write)
        def retried(*args: P.args, **kwargs: P.kwargs) -> T:
            waiting = _waiting.get()
            try:
                return write(*args, **kwargs)
            except Exception as error:
                if waiting is None or not is_full(error):
                    raise
                return _retry(waiting, path_of(*args, **kwargs), functools.partial(write, *args, **kwargs), error)

        return retried

    return decorate


def _retry(waiting: _Waiting, path: Path, write: Callable[[], T], reason: Exception) -> T:
    asked, since = waiting.interrupted(), time.monotonic()
    waiting.note(f"disk full: waiting for space in {path.parent} ({free_space(path.parent)}; {reason})")
    while _pause(waiting, asked, since):
        try:
            written = write()
        except Exception as error:
            if not is_full(error):
                raise
            reason = error
        else:
            waiting.note(f"disk space is available again after {time.monotonic() - since:.0f} s; the run goes on")
            return written
    if not isinstance(reason, OSError):
        raise reason
    kept = waiting.kept()
    raise DiskFull(
        f"could not write {str(path)!r}: {reason} ({free_space(path.parent)}), "
        f"waited {time.monotonic() - since:.0f} s for space" + (f"; {kept}" if kept else "")
    ) from reason


def _pause(waiting: _Waiting, asked: bool, since: float) -> bool:
    """Waits until the next attempt is due; False where there is to be none."""
    end = min(time.monotonic() + PAUSE, since + LIMIT)
    while time.monotonic() < end:
        if waiting.interrupted() and not asked:
            return False
        time.sleep(min(0.1, PAUSE))
    return end < since + LIMIT
