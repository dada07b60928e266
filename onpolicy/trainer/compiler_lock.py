"""Locks of torch's extension compiler, by which DeepSpeed compiles its operators at first use.

A lock is a file that exists. A process that is killed while it compiles leaves it behind, and torch would wait for it for ever.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.file_baton import FileBaton

PATIENCE_S = 60.0
"""How long a lock that nobody is seen to hold is waited for."""
POLL_S = 0.5


@contextmanager
def abandoned_locks_removed() -> Iterator[None]:
    """Inside, whoever has to wait for a lock says so, and removes one that is abandoned."""
    acquire = FileBaton.try_acquire

    def wait_and_acquire(baton: FileBaton) -> bool:
        while not acquire(baton):
            _wait(Path(baton.lock_file_path))
        return True  # compiles again, which does nothing if the other process has compiled everything

    FileBaton.try_acquire = wait_and_acquire  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        FileBaton.try_acquire = acquire  # type: ignore[method-assign]


def _wait(lock: Path) -> None:
    """Until the lock is gone. It is abandoned if no process here has it open and nothing beside it changes."""
    _say(f"waiting for {str(lock)!r}, by which another process says that it is compiling")
    seen, until = _beside(lock), time.monotonic() + PATIENCE_S
    while lock.exists():
        now = _beside(lock)
        if now != seen or _is_open(lock):
            seen, until = now, time.monotonic() + PATIENCE_S
        elif time.monotonic() >= until:
            _say(
                f"nobody has held {str(lock)!r} for {PATIENCE_S:g} s; a process that was killed has left it, and it is removed"
            )
            lock.unlink(missing_ok=True)
        time.sleep(POLL_S)


def _beside(lock: Path) -> set[tuple[str, int]]:
    """Name and time of the last change of each file in the lock's folder, by which a compiler on another machine shows."""
    found = set()
    with os.scandir(lock.parent) as entries:
        for entry in entries:
            try:
                found.add((entry.name, entry.stat().st_mtime_ns))
            except OSError:  # it is gone already
                continue
    return found


def _is_open(file: Path) -> bool:
    """Whether a process of this machine has the file open, as far as this one may see; False where there is no /proc."""
    name = str(file.resolve())
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == name:
                return True
        except OSError:
            continue
    return False


def _say(what: str) -> None:
    print(f"deepspeed: {what}", file=sys.stderr, flush=True)
