"""Starts the ranks of this machine, one process each, with the environment that torchrun would give them.

Unlike torchrun it leaves ranks the time they need after a signal: rank 0 finishes its step, saves, and ends the others. A rank that a
signal has killed takes the others along, and all are started again, to go on from the run's last checkpoint. An error ends the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from onpolicy.utils.device import available_cores
from onpolicy.utils.signals import on_interrupt

HOST = "127.0.0.1"
POLL = 0.2
"""Seconds between two looks at the ranks."""
GRACE = 30.0
"""Seconds in which ranks end by themselves once one of them has ended."""
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
SAID = 4000
"""Characters of what a rank has said before it failed."""


def start_ranks(command: Sequence[str], size: int, *, max_restarts: int) -> int:
    """Runs Python with these arguments in ``size`` ranks until all have ended.

    Args:
        command: ``-m onpolicy train ...``
        size: number of ranks; rank i has device i
        max_restarts: how often ranks that were killed are started again

    Returns:
        The exit status: that of rank 0, or of the rank that failed first.
    """
    asked = _Asked()
    with on_interrupt(asked.again):
        for attempt in range(max_restarts + 1):
            with tempfile.TemporaryDirectory(prefix="onpolicy-ranks-") as folder, _store() as port:
                ranks = Ranks(command, size, Path(folder), port, attempt)
                status = ranks.wait(asked)
                if status >= 0 or asked.times or attempt == max_restarts:
                    print(ranks.said_by_the_first_to_fail(), end="", file=sys.stderr)
                    return status if status >= 0 else 128 - status
            print(
                f"onpolicy: a rank was killed by signal {-status}; starting all {size} again, from the last checkpoint "
                f"({attempt + 1} of distributed.max_restarts={max_restarts})",
                file=sys.stderr,
            )
    raise AssertionError("the last attempt returns")


class _Asked:
    """How often the user has asked the ranks to stop."""

    times = 0

    def again(self) -> None:
        self.times += 1


class Ranks:
    """The processes of one attempt. What rank 0 prints is printed; the others, which print the same, write to files."""

    def __init__(self, command: Sequence[str], size: int, folder: Path, port: int, attempt: int) -> None:
        """
        Args:
            command: Python's arguments in each of them
            size: number of ranks
            folder: for what the others than rank 0 say
            port: of the store at which they meet
            attempt: 0 for the first; keeps what an earlier one has left in the store apart
        """
        self._files = [folder / f"rank-{rank}.log" for rank in range(size)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._failed: int | None = None
        for rank in range(size):
            with self._files[rank].open("wb") as said:
                output: IO[bytes] | None = said if rank else None
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        env={**os.environ, **rank_environment(rank, size, port, attempt)},
                        stdin=subprocess.DEVNULL if rank else None,
                        stdout=output,
                        stderr=output,
                        preexec_fn=die_with_parent,
                        start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which hands it on to rank 0
                    )
                )

    def wait(self, asked: _Asked) -> int:
        """Waits until all have ended, and hands requests to stop on to rank 0; the second one to all of them.

        Returns:
            Exit status of rank 0, or of the first that failed; negative: the signal by which it was killed.
        """
        handed_on = 0
        while not self._failing() and any(process.poll() is None for process in self._processes):
            if handed_on < asked.times:
                handed_on += 1
                for process in self._processes if handed_on > 1 else self._processes[:1]:
                    _send(process, signal.SIGTERM if handed_on == 1 else signal.SIGKILL)
            time.sleep(POLL)
        self._end()
        failed = 0 if self._failed is None else self._failed
        status = self._processes[failed].returncode
        assert status is not None
        return status

    def said_by_the_first_to_fail(self) -> str:
        """What the rank whose failure ended the others wrote last; empty for rank 0, whose output was seen."""
        if not self._failed:
            return ""
        text = self._files[self._failed].read_text(errors="replace")[-SAID:]
        return f"onpolicy: rank {self._failed} failed:\n{text}\n"

    def _failing(self) -> bool:
        """Whether a rank has failed; the others would wait for it."""
        if self._failed is None:
            failed = [rank for rank, process in enumerate(self._processes) if process.poll() not in (None, 0)]
            # one that was killed is why others failed in the same moment
            self._failed = min(failed, default=None, key=lambda rank: (self._processes[rank].returncode > 0, rank))
        return self._failed is not None

    def _end(self) -> None:
        """Ends all for certain; those that have the same to say get time to say it."""
        until = time.monotonic() + (GRACE if self._processes[self._failed or 0].returncode != -signal.SIGKILL else 0.0)
        while time.monotonic() < until and any(process.poll() is None for process in self._processes):
            time.sleep(POLL)
        for process in self._processes:
            _send(process, signal.SIGKILL)
            process.wait()


def die_with_parent() -> None:
    """In a new process: the kernel kills it when the one that has started it is gone, whatever ended that. Linux alone has this."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def rank_environment(rank: int, size: int, port: int, attempt: int) -> Mapping[str, str]:
    """The variables that torchrun sets, and the share of the processor that a rank has."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0}
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, available_cores() // size))}
    return {
        **{name: str(value) for name, value in place.items()},
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 joins the store below, rather than open one of its own
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "TORCHELASTIC_RUN_ID": "onpolicy",
        **threads,
    }


@contextmanager
def _store() -> Iterator[int]:
    """The store at which the ranks meet, on a free port of this machine that is bound from here on."""
    from onpolicy.trainer.process_group import open_store

    store = open_store(HOST)
    yield store.port
    del store


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    """To a rank and to everything that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
