"""One process at a time trains into a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from onpolicy.utils.errors import UserError

LOCK = "run.lock"
_held: set[Path] = set()
"""Folders that this process trains into: the kernel lets a process lock again what it has locked, and drops both with the first."""


class FolderInUse(UserError, RuntimeError):
    """Another process trains into the run folder."""


@contextmanager
def exclusive(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Inside, no other process trains into the folder, on this machine or on one that shares its disk.

    The kernel keeps the lock for this process, not for what it forks, and drops it when the process ends, however that is. The file that is
    locked stays in the folder. A folder that is new and in which nothing is written goes again.

    Args:
        folder: of the run
        note: is told where the file system has no locks; the run goes on without one

    Raises:
        FolderInUse: names the folder, and the process that trains into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        if place in _held:
            raise FolderInUse(_in_use(folder, f"process {os.getpid()}, this one,"))
        file = (folder / LOCK).open("a+")
    except OSError:  # whoever writes the first file says why that cannot be
        yield
        return
    _held.add(place)
    with contextlib.ExitStack() as end, file:
        end.callback(_held.discard, place)
        _lock(file, folder, note)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it may be a mount, a link, or gone
                if os.listdir(folder) == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()


def in_use(folder: Path) -> bool | None:
    """Whether a process trains into the folder, without locking anything; None where that cannot be told."""
    if folder.resolve() in _held:
        return True
    try:
        with (folder / LOCK).open("rb") as file:
            if sys.platform != "linux":  # the layout of the question is the system's
                return None
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)


def _lock(file: IO[str], folder: Path, note: Callable[[str], None]) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # fcntl(2) allows both
        file.seek(0)
        raise FolderInUse(_in_use(folder, file.read().strip() or "another process")) from error
    except OSError as error:
        note(f"{folder} cannot be locked ({error.strerror}): a second run in it would overwrite what this one writes")


def _in_use(folder: Path, who: str) -> str:
    return (
        f"run_dir: {str(folder)!r} is in use: {who} trains into it; expected a folder that no other run writes. Wait until it ends, end "
        "it, or give another run_dir"
    )
