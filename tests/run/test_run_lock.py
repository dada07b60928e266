"""One process at a time trains into a run folder.

1. a second one is refused, with the folder and the process that has it, and changes no file; 2. the lock ends with the process, also when
it is killed and has forked, and the run goes on; 3. where the file system has no locks a run says so and goes on; 4. a mistake leaves no
folder behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onpolicy.run.run_lock import LOCK, FolderInUse, exclusive
from tests.runs import metrics, run_here, write_config

HOLD = """
import os, sys
from pathlib import Path
from onpolicy.run.run_lock import exclusive
with exclusive(Path(sys.argv[1]), print):
    if not os.fork():
        sys.stdin.read()  # outlives its parent
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the lock, and a child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.process
def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = write_config(tmp_path), tmp_path / "run"
    options = f"run_dir={folder}", "preflight.enabled=false"
    assert run_here(config, *options, "steps=1") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}
    holder = hold(folder)
    try:
        assert run_here(config, *options) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert (
            f"run_dir: {str(folder)!r} is in use: process {holder.pid} on {os.uname().nodename} trains into it" in said
        )
        assert before == {path: path.read_bytes() for path in before}
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert run_here(config, *options) == 0, "its child still lives"
    finally:
        holder.kill()
        assert holder.stdin is not None
        holder.stdin.close()
    assert [row["step"] for row in metrics(folder)] == [1, 2, 3]


def test_without_locks_a_run_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    said: list[str] = []
    with exclusive(tmp_path, said.append):
        (tmp_path / "config.yaml").touch()
    assert len(said) == 1 and str(tmp_path) in said[0] and "No locks available" in said[0]


@pytest.mark.parametrize("error", [BlockingIOError(errno.EAGAIN, ""), PermissionError(errno.EACCES, "")])
def test_both_errors_of_a_held_lock_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def lockf(*_: Any) -> None:
        raise error

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(FolderInUse), exclusive(tmp_path, print):
        pass


def test_a_mistake_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError), exclusive(tmp_path / "run", print):
        raise ValueError
    assert not (tmp_path / "run").exists()


def test_one_process_does_not_train_twice_into_a_folder(tmp_path: Path) -> None:
    """The kernel would let it; by another name neither."""
    (tmp_path / "other").symlink_to(tmp_path / "run")
    with exclusive(tmp_path / "run", print):
        for folder in (tmp_path / "run", tmp_path / "other"):
            with pytest.raises(FolderInUse, match="this one"), exclusive(folder, print):
                pass
    with exclusive(tmp_path / "other", print):
        pass


def test_a_folder_that_cannot_go_hides_no_error(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "run", print):
        raise ZeroDivisionError
    assert (tmp_path / "real").is_dir()
