"""Processes that apply one job.

1. results are the job's, whichever process has the task; 2. what raises, or cannot be pickled, is not done; 3. a process that dies costs
its task alone and is replaced, a few times; one that cannot load the job says why; 4. closing ends them, also in the middle of a task; 5.
they end with a process that is killed, in the middle of a task too; 6. the script that starts them is not run again in them, and Ctrl-C
does not reach them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from onpolicy.utils import worker_processes
from onpolicy.utils.worker_processes import MOST_LOST, NotDone, WorkerProcesses
from tests.utils import worker_jobs

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
Make = Callable[..., WorkerProcesses]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(said: list[str]) -> Iterator[Make]:
    made: list[WorkerProcesses] = []

    def start(job: Any = worker_jobs.work, count: int = 2) -> WorkerProcesses:
        made.append(WorkerProcesses(job, count, said.append))
        return made[-1]

    yield start
    for processes in made:
        processes.close()


def gone(pid: int) -> None:
    """Waits until a process of somebody else's has ended."""
    while Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
        threading.Event().wait(0.02)


def test_results_and_failures(make: Make, said: list[str]) -> None:
    processes = make()
    futures = [processes.submit(("square", i)) for i in range(40)]
    assert [future.result() for future in futures] == [i * i for i in range(40)]
    with pytest.raises(NotDone, match="ValueError: no 3"):
        processes.submit(("refuse", 3)).result()
    with pytest.raises(NotDone, match="cannot be pickled"):
        processes.submit(("square", lambda: 0)).result()
    with pytest.raises(NotDone, match="pickle"):
        processes.submit(("unpicklable", 0)).result()
    assert processes.submit(("square", 5)).result() == 25 and said == []


def test_a_process_that_dies_costs_its_task_alone(make: Make, said: list[str]) -> None:
    processes = make(count=1)
    first = processes.submit(("pid", 0)).result()
    with pytest.raises(NotDone, match="died"):
        processes.submit(("die", 0)).result()
    second = processes.submit(("pid", 0)).result()
    assert first != second and said == ["died (exit status -9); another one takes its place"]
    for _ in range(MOST_LOST):
        with pytest.raises(NotDone):
            processes.submit(("die", 0)).result()
    with pytest.raises(NotDone, match="no process"):
        processes.submit(("pid", 0)).result()
    assert len(said) == MOST_LOST + 1 and said[-1].endswith("no more are started")


def test_a_job_that_cannot_be_loaded(make: Make, said: list[str]) -> None:
    processes = make(worker_jobs.Unloadable(), count=1)
    with pytest.raises(NotDone):
        processes.submit(0).result()
    assert said[0].startswith("could not start: ImportError: not here")


def test_closing_ends_what_is_under_way(make: Make, tmp_path: Path) -> None:
    processes = make(count=1)
    under_way, waiting = processes.submit(("hold", str(tmp_path / "began"))), processes.submit(("square", 1))
    while not (tmp_path / "began").exists():
        threading.Event().wait(0.02)
    (pid,) = processes.pids()
    processes.close()
    gone(pid)
    for future in (under_way, waiting):
        with pytest.raises(NotDone):
            future.result()


def test_what_comes_after_the_end_is_not_done(make: Make) -> None:
    processes = make(count=1)
    processes.close()
    with pytest.raises(NotDone, match="have ended"):
        processes.submit(("square", 1)).result()


def test_tasks_go_on_where_whoever_is_told_fails() -> None:
    def full(what: str) -> None:
        raise OSError("no space left")

    processes = WorkerProcesses(worker_jobs.work, 1, full)
    with pytest.raises(NotDone):
        processes.submit(("die", 0)).result()
    assert processes.submit(("square", 3)).result() == 9
    processes.close()


def test_a_machine_without_room_for_a_process(make: Make, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room() -> None:
        raise OSError(24, "Too many open files")

    processes = make(count=1)
    assert processes.submit(("square", 3)).result() == 9
    monkeypatch.setattr(worker_processes, "_Process", no_room)
    with pytest.raises(NotDone):
        processes.submit(("die", 0)).result()
    for _ in range(MOST_LOST + 1):
        with pytest.raises(NotDone, match="no process"):
            processes.submit(("square", 1)).result()
    assert "Too many open files" in said[1] and said[-1].endswith("no more are started")


def test_a_process_that_loads_what_it_should_not_is_the_last(make: Make, said: list[str]) -> None:
    processes = make(worker_jobs.Unwanted(), count=2)
    assert processes.submit("calendar").result() == "calendar"
    with pytest.raises(NotDone, match="it has loaded wave"):
        processes.submit("wave").result()
    while processes.pids():  # the other one learns it with its next task
        with suppress(NotDone):
            processes.submit("wave").result()
    with pytest.raises(NotDone, match="no process"):
        processes.submit("calendar").result()
    assert said == ["it has loaded wave; no more are started"]


SCRIPT = """
import os, signal, sys
from onpolicy.utils.worker_processes import WorkerProcesses
from tests.utils import worker_jobs

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
print("script", os.getpid(), flush=True)  # not guarded by a test of __name__
processes = WorkerProcesses(worker_jobs.work, 2, print)
print(*(processes.submit(("pid", 0)).result() for _ in range(1)), flush=True)
futures = [processes.submit(("hold", f"{sys.argv[1]}/{i}")) for i in range(2)]
futures[0].result()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_they_end_with_the_process_that_started_them(number: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    driver = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    while not all((tmp_path / str(i)).exists() for i in range(2)):
        threading.Event().wait(0.02)
    pids = [int((tmp_path / str(i)).read_text()) for i in range(2)]
    os.killpg(driver.pid, number)  # as a terminal does
    out, err = driver.communicate()
    for pid in pids:
        gone(pid)
    assert out.count("script") == 1 and err.count("Traceback") == (number == signal.SIGINT), err
