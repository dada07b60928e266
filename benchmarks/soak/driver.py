"""The run under test: ``onpolicy train``, started again with the same folder as a scheduler would, and its family."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.environment import ROOT

TITLES = {"ray::Replica": "generator", "ray::Rank": "trainer", "ray::score_rewards": "rewards"}
"""Beginning of a process's title -> role."""
REPLACED = re.compile(r"(\w+): .*takes its place")
WENT_BACK = re.compile(r"(?:went|going|goes) back to", re.IGNORECASE)
RESUMED = re.compile(r"resumed at step (\d+) of")
FAREWELL = 15.0
"""Seconds in which everything that a dead driver had started must be gone."""


@dataclass(frozen=True)
class Member:
    """A process of the run."""

    role: str
    process: psutil.Process
    stopped: bool

    @property
    def life(self) -> str:
        return f"{self.process.pid}@{self.process.create_time():.2f}"


class Driver:
    """One run folder and the process that trains in it now."""

    def __init__(self, config: Path, run: Path, log: Path, temporary: Path) -> None:
        self.run, self.starts = run, 0
        self.replaced: Counter[str] = Counter()
        """Role -> how often it said so."""
        self.went_back = 0
        self.resumed_at: int | None = None
        """Step at which the process that runs now took the run up; None: it began."""
        self.tail: deque[str] = deque(maxlen=30)
        self._command = [sys.executable, "-m", "onpolicy", "train", str(config), f"run_dir={run}"]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "500", "RAY_TMPDIR": str(temporary)}
        self._log = log.open("w")
        self._process: subprocess.Popen[str] | None = None
        self._family: dict[tuple[int, float], Member] = {}

    def start(self) -> None:
        """Its output comes through a pipe: a quota on the size of files must not reach it."""
        self.starts, self.resumed_at = self.starts + 1, None
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, env=self._environment, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll() if self._process else 0

    def send(self, number: int) -> None:
        if self.ended() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()

    def members(self) -> list[Member]:
        """The driver and everything it started, Ray's own processes under the role ``ray``."""
        found = []
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(self.pid)
            for process in [driver, *driver.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    if (status := process.status()) != psutil.STATUS_ZOMBIE:
                        role = "driver" if process.pid == self.pid else _role(process)
                        found.append(Member(role, process, status == psutil.STATUS_STOPPED))
                        self._family[process.pid, process.create_time()] = found[-1]
        return found

    def orphans(self) -> Counter[str]:
        """Counts, by role, what is left of the family of a driver that ended; ends it."""
        deadline = time.monotonic() + FAREWELL
        while (left := list(self._alive())) and time.monotonic() < deadline:
            time.sleep(0.2)
        for member in left:
            with contextlib.suppress(psutil.Error):
                member.process.kill()
        self._family = {}
        return Counter(f"{member.role}{' (stopped)' if member.stopped else ''}" for member in left)

    def close(self) -> None:
        self.members()
        self.kill()
        self.orphans()

    def _alive(self) -> Iterator[Member]:
        for member in self._family.values():
            with contextlib.suppress(psutil.Error):
                status = member.process.status() if member.process.is_running() else psutil.STATUS_ZOMBIE
                if status != psutil.STATUS_ZOMBIE:
                    yield Member(member.role, member.process, status == psutil.STATUS_STOPPED)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._log.write(line)
            self._log.flush()
            self.tail.append(line.rstrip())
            if found := REPLACED.search(line):
                self.replaced[found[1]] += 1
            if found := RESUMED.search(line):
                self.resumed_at = int(found[1])
            self.went_back += bool(WENT_BACK.search(line))


def _role(process: psutil.Process) -> str:
    title = " ".join(process.cmdline())
    return next((role for beginning, role in TITLES.items() if title.startswith(beginning)), "ray")
