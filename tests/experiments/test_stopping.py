"""Nothing that a command has started outlives it: its runs are told, save, and the command that goes on is printed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from onpolicy.experiments.sweep.grid import Cell, cells
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.utils.signals import Stopped, on_interrupt, resumable
from tests.experiments.test_sweep import end_session, grid, of_session, until
from tests.runs import metrics

pytestmark = pytest.mark.process

LAB = """
import sys
from pathlib import Path
from onpolicy.cli import main
from onpolicy.experiments.lab import lab_command
lab_command.GRID = Path(sys.argv.pop(1))
sys.exit(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a grid of two runs, which save only when asked and stay in their first step as long as there is a file ``hold``."""
    (folder := tmp_path / "my sweeps #1").mkdir()
    (hold := folder / "hold").touch()
    grid(folder, seeds=[0], arms={"plain": {}, "slow": {"trainer.lr": 1e-6}}, axes=["trainer.lr"], confounds=[])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"checkpoint": {"every": 0}, "preflight": {"enabled": False}, "steps": 3}
    config["rewards"] = [{"name": "tests.runs:held", "hold": str(hold), "after": "metrics.jsonl"}]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """In a session of its own; nothing of it outlives the block."""
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            end_session(process.pid)


def in_the_first_step(runs: list[Cell], process: subprocess.Popen[str]) -> None:
    for cell in runs:
        until(lambda cell=cell: (cell.folder / "metrics.jsonl").exists(), process)  # type: ignore[misc]


def let_go(folder: Path, runs: list[Cell], process: subprocess.Popen[str]) -> None:
    """As soon as every run knows that it is to stop."""
    for cell in runs:
        until(lambda cell=cell: "stopping after this step" in cell.log.read_text(), process)  # type: ignore[misc]
    (folder / "hold").unlink()


def saved_step(cell: Cell) -> int | None:
    latest = Checkpoints(cell.folder / "checkpoints", keep_last=2, best=None).latest()
    return latest.step if latest else None


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGTERM, id="SIGTERM"), pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.nightly)],
)
def test_a_sweep_that_is_stopped_saves_its_runs_and_says_how_to_go_on(folder: Path, number: signal.Signals) -> None:
    """SIGTERM goes to the sweep alone, Ctrl-C to all that the terminal has in the foreground."""
    runs = list(cells(folder / "grid.yaml", folder / "out"))
    words = ["sweep", str(folder / "grid.yaml"), "--output", str(folder / "out"), "--jobs", "2"]
    with started("-m", "onpolicy", *words) as process:
        in_the_first_step(runs, process)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        let_go(folder, runs, process)
        said = process.communicate()[0]
        assert process.returncode == 130 and "Traceback" not in said and "failed" not in said, said
        assert not of_session(process.pid), "nobody is left"
    assert "finish their step and save" in said
    for cell in runs:
        assert saved_step(cell) == metrics(cell.folder)[-1]["step"] == 1
        assert "stopped after step 1" in cell.log.read_text()
    _, _, command = said.splitlines()[-1].partition("to go on: ")
    assert shlex.split(command)[-len(words) :] == words
    again = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "2 runs, 0 finished" in again.stdout, again.stdout + again.stderr
    assert all("resumed at step 1" in cell.log.read_text() and cell.finished() for cell in runs)


@pytest.mark.nightly
def test_asked_twice_the_runs_stop_at_once(folder: Path) -> None:
    """They are held, so they never finish their step."""
    runs = list(cells(folder / "grid.yaml", folder / "out"))
    with started(
        "-m", "onpolicy", "sweep", str(folder / "grid.yaml"), "--output", str(folder / "out"), "--jobs", "2"
    ) as process:
        in_the_first_step(runs, process)
        process.send_signal(signal.SIGTERM)
        for cell in runs:
            until(lambda cell=cell: "stopping after this step" in cell.log.read_text(), process)  # type: ignore[misc]
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[0]
        assert process.returncode == 130 and "to go on: " in said and not of_session(process.pid)
    assert [saved_step(cell) for cell in runs] == [None, None]


def test_the_lab_that_is_stopped(folder: Path) -> None:
    """One run at a time: the one under way saves, the other is not begun."""
    first, second = list(cells(folder / "grid.yaml", folder / "out"))
    with started("-c", LAB, str(folder / "grid.yaml"), "lab", "--output", str(folder / "out")) as process:
        in_the_first_step([first], process)
        process.send_signal(signal.SIGTERM)
        let_go(folder, [first], process)
        said = process.communicate()[0]
        assert process.returncode == 130 and not of_session(process.pid)
    assert saved_step(first) == 1 and not second.folder.exists()
    assert said.splitlines()[-1].endswith(shlex.join(["lab", "--output", str(folder / "out")]))


VERL = """
import sys
from types import SimpleNamespace
from onpolicy.cli import main
from onpolicy.integrations.verl import command
trainer = SimpleNamespace(default_local_dir="run", resume_mode="auto", v1=SimpleNamespace(trainer_mode=sys.argv.pop(1)))
command.check = lambda path, overrides: SimpleNamespace(trainer=trainer)
sys.exit(main())
"""
MAIN_PPO = """
import pathlib, signal, sys, time
here = pathlib.Path("run")
def interrupted(number, frame):
    here.joinpath("interrupted").touch()
    sys.exit(1)
signal.signal(signal.SIGINT, interrupted)
here.mkdir(exist_ok=True)
here.joinpath("started").touch()
while not here.joinpath("stop").exists() or here.joinpath("hold").exists():
    time.sleep(0.01)
here.joinpath("saved").touch()
"""
"""In the place of verl: runs until it finds the file by which it is asked to save and stop."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize(("mode", "left"), [("onpolicy", "saved"), ("sync", "interrupted"), ("held", "interrupted")])
def test_verl_is_told_to_stop(
    number: signal.Signals, mode: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our trainer saves after its step; verl's own, and one that is asked a second time, stop at once. Nobody outlives the command."""
    (package := tmp_path / "verl" / "trainer").mkdir(parents=True)
    (package / "main_ppo.py").write_text(MAIN_PPO)
    (tmp_path / "my method.yaml").touch()
    (run := tmp_path / "run").mkdir()
    if mode == "held":
        (run / "hold").touch()
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.chdir(tmp_path)
    words = ["verl", "train", "my method.yaml", "trainer.nnodes=1"]
    with started("-c", VERL, "onpolicy" if mode == "held" else mode, *words) as process:
        until((run / "started").exists, process)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        if mode == "held":
            until((run / "stop").exists, process)
            process.send_signal(number)
        said = process.communicate()[0]
        assert process.returncode == 130 and "Traceback" not in said, said
        assert not of_session(process.pid)
    assert {path.name for path in run.iterdir()} & {"saved", "interrupted"} == {left}
    assert ("with a checkpoint" in said) == (mode != "sync")
    _, _, command = said.splitlines()[-1].partition("to go on: ")
    assert shlex.split(command)[-len(words) :] == words


def test_handlers_go_back_and_what_nohup_ignores_stays_ignored() -> None:
    before, asked = signal.getsignal(signal.SIGTERM), list[None]()
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_interrupt(lambda: asked.append(None)):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.raise_signal(number)
        assert len(asked) == 2
        with pytest.raises(Stopped), resumable():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, hung_up)
