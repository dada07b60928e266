"""A sweep as jobs, by submitit's executor for this machine, and what Slurm itself would be given.

1. its runs are those of a sweep without Slurm, to the last digit; 2. a run whose job has to end saves, is queued again and goes on, also
where the signal reaches its process; 3. one that is told to stop and not by the sweep is submitted again; 4. a sweep that is called off
lets its runs finish their step, and starts none of those that wait; 5. what is started together is one array, with what the settings
say; 6. settings that are wrong, and a machine without Slurm, are said; 7. a run that comes no further is not queued without an end.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from onpolicy.cli import main
from onpolicy.experiments.sweep import slurm_runs
from onpolicy.experiments.sweep.grid import Cell, cells
from onpolicy.experiments.sweep.processes import STOPPED
from onpolicy.experiments.sweep.slurm_job import last_step, require_progress
from onpolicy.experiments.sweep.slurm_runs import SlurmRuns
from onpolicy.experiments.sweep.slurm_settings import SlurmSettings, read_settings
from onpolicy.experiments.sweep.sweep import run_all, sweep
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.utils.errors import ConfigError, UserError
from tests.experiments.test_sweep import grid
from tests.runs import metrics

here = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")


def two(folder: Path, hold: Path | None = None, **changes: Any) -> tuple[Path, list[Cell]]:
    path = grid(folder, **{"seeds": [0], "confounds": [], "axes": ["trainer.lr"],
                           "arms": {"plain": {}, "slow": {"trainer.lr": 1e-6}}, **changes})  # fmt: skip
    held = ("steps=6", f"rewards=[{{name: tests.runs:held, hold: {hold}}}]") if hold else ()
    return path, list(cells(path, folder / "out", held))


def here_as_jobs(folder: Path, settings: SlurmSettings | None = None) -> SlurmRuns:
    return SlurmRuns(folder / "out", settings or SlurmSettings(), cluster="local")


def until(true: Callable[[], bool]) -> None:
    """No deadline but pytest's own."""
    while not true():
        time.sleep(0.05)


def saved_a_step(cell: Cell, future: Future[int]) -> None:
    until(lambda: future.done() or (cell.folder / "checkpoints/step-000001").is_dir())
    assert not future.done(), cell.log.read_text()


def told(cell: Cell, times: int = 1) -> None:
    until(lambda: cell.log.read_text().count("stopping after this step") >= times)


def runs_of(cell: Cell) -> Iterator[int]:
    """The processes that train the cell."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f'run_dir="{cell.folder}"'.encode() in words:
            yield int(path.parent.name)


def run_of(cell: Cell) -> int:
    return next(runs_of(cell))


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@here
@pytest.mark.process
def test_the_runs_are_those_of_a_sweep_without_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, runs = two(tmp_path)
    assert sweep(path, tmp_path / "out", (), 1, lambda: here_as_jobs(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "2/2" in said and "slow" in said and (tmp_path / "out/report.html").exists()
    assert main(["sweep", str(path), "--output", str(tmp_path / "own"), "--jobs", "2"]) == 0
    for cell in runs:
        assert metrics(cell.folder) == metrics(tmp_path / "own" / cell.folder.relative_to(tmp_path / "out"))
        assert cell.log.read_text()
    config = (runs[1].folder / "config.yaml").read_text()
    assert "name: slow/seed-0" in config and "group: slow" in config


@here
@pytest.mark.process
def test_a_run_whose_job_has_to_end_goes_on_in_the_next_one(tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    _, (cell, _) = two(tmp_path, hold)
    with closing(here_as_jobs(tmp_path)) as place:
        future = place.start(cell)
        saved_a_step(cell, future)
        for process in (trains := run_of(cell), parent_of(trains)):  # the signal would end one that does not know it
            os.kill(process, signal.SIGUSR2)
        told(cell)
        hold.unlink()
        assert future.result() == 0 and place.failure(cell, future) is None
    log = cell.log.read_text()
    assert (
        "of 6" in log and "resumed at step" in log and [row["step"] for row in metrics(cell.folder)] == list(range(7))
    )


@here
@pytest.mark.process
def test_a_run_that_the_cluster_stops_is_submitted_again(tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    _, (cell, _) = two(tmp_path, hold)
    with closing(here_as_jobs(tmp_path)) as place:
        future = place.start(cell)
        saved_a_step(cell, future)
        os.kill(run_of(cell), signal.SIGTERM)
        told(cell)
        hold.unlink()
        assert future.result() == 0 and place.failure(cell, future) is None
    assert "resumed at step" in cell.log.read_text()


@here
@pytest.mark.process
def test_a_sweep_that_is_called_off_lets_its_runs_finish_their_step(tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    _, (cell, other) = two(tmp_path, hold)
    with closing(here_as_jobs(tmp_path)) as place:
        future = place.start(cell)
        saved_a_step(cell, future)
        place.stop()
        late = place.start(other)
        told(cell)
        hold.unlink()
        assert (future.result(), late.result()) == (STOPPED, STOPPED)
    latest = Checkpoints(cell.folder / "checkpoints", keep_last=2, best=None).latest()
    assert latest is not None and 0 < latest.step < 6 and not other.log.exists()
    with closing(here_as_jobs(tmp_path)) as place:  # the next sweep's own request is another one
        assert run_all([cell], place, Console()) == []


class Job:
    """Of submitit, whose state takes a while to be asked for, and which ends meanwhile."""

    def __init__(self, ends: bool = False) -> None:
        self.ends, self.over, self.cancelled = ends, False, 0

    @property
    def state(self) -> str:
        self.over = self.ends
        time.sleep(3 * slurm_runs.LOOK)
        return "RUNNING"

    def get_info(self, mode: str) -> dict[str, str]:
        return {}

    def done(self) -> bool:
        return self.over

    def result(self) -> int:
        return STOPPED

    def cancel(self, check: bool) -> None:
        self.cancelled += 1


@here
@pytest.mark.process
def test_a_job_that_ends_while_the_runs_are_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_runs, "LOOK", 0.1)
    monkeypatch.setattr(slurm_runs, "GRACE", 0.5)
    _, runs = two(tmp_path)
    futures: list[Future[int]] = [Future(), Future()]
    with closing(here_as_jobs(tmp_path)) as place:
        jobs = [Job(ends=True), Job()]
        place._jobs |= {future: (cell, job) for future, cell, job in zip(futures, runs, jobs, strict=True)}
        place.stop()
        assert futures[0].result() == STOPPED and not futures[1].done()
    assert [job.cancelled for job in jobs] == [0, 0]  # closing is no second request


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, runs: int) -> Path:
    """Commands of Slurm that keep what they are given; returns the file from which sacct reads the states."""
    (states := folder / "states").write_text("JobID|State\n" + "".join(f"{number}_{i}|PENDING\n" for i in range(runs)))
    for name, does in {"sbatch": f'cp "$1" {folder}/given; echo Submitted batch job {number}', "srun": "",
                       "scancel": f'echo "$1" >> {folder}/cancelled', "sacct": f"cat {states}; touch {folder}/asked"}.items():  # fmt: skip
        (program := folder / "bin" / name).parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_runs, "GRACE", 0.0)
    return states


@here
@pytest.mark.process
@pytest.mark.parametrize(("given", "number", "array"), [("at_once=1", 2, "0-1%1"), ("gpus=2", 300, "0-299%300")])
def test_what_slurm_is_given(
    given: str, number: int, array: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm(tmp_path, monkeypatch, 12, runs=2)
    _, (cell, _) = two(tmp_path)
    settings = read_settings([f"time=4:00:00,gpus=2,cpus=8,mem=64G,partition=h100,account=us,{given}", "sbatch.nice=5"])
    with closing(SlurmRuns(tmp_path / "out", settings)) as place:
        for _ in range(number):
            place.start(cell)
        until((tmp_path / "given").exists)
        time.sleep(0.5)
        place._jobs.clear()
    script = (tmp_path / "given").read_text()
    for line in (f"array={array}", "time=240", "partition=h100", "account=us", "mem=64G", "gpus-per-node=2", "cpus-per-task=8",
                 "nice=5", "signal=USR2@300", "open-mode=append"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script, (line, script)


@here
@pytest.mark.process
def test_a_job_that_has_just_begun_is_not_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = fake_slurm(tmp_path, monkeypatch, 13, runs=2)
    _, runs = two(tmp_path)
    with closing(SlurmRuns(tmp_path / "out", SlurmSettings())) as place:
        for cell in runs:
            place.start(cell)
        until(lambda: len(place._jobs) == 2 and (tmp_path / "asked").exists())
        states.write_text("JobID|State\n13_0|RUNNING\n13_1|PENDING\n")
        place.stop()
        place._jobs.clear()
    assert (tmp_path / "cancelled").read_text() == "13_1\n"


@here
@pytest.mark.process
def test_a_run_that_comes_no_further_is_not_queued_without_an_end(tmp_path: Path) -> None:
    _, (cell, _) = two(tmp_path)
    seen: set[int] = set()

    def begun() -> bool:
        found = {process for process in runs_of(cell) if process not in seen}
        seen.update(found)
        return bool(found)

    with closing(here_as_jobs(tmp_path)) as place:
        future = place.start(cell)
        for _ in range(2):  # while it loads
            until(begun)
            os.kill(parent_of(max(seen)), signal.SIGUSR2)
        until(lambda: future.done() or begun())
        assert future.done(), "a third job has begun"
        assert "plain seed 0: stopped by the cluster twice, and the run has not logged a step" in str(
            place.failure(cell, future)
        )


def test_a_run_that_is_stopped_again_and_again(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    _, (cell, other) = two(tmp_path)
    for one in (cell, other):
        one.folder.mkdir(parents=True)
        (one.folder / "metrics.jsonl").write_text('{"step": 0}\n{"step": 3}\n')
    with closing(here_as_jobs(tmp_path, SlurmSettings(requeues=1))) as place:
        first, second = Future[int](), Future[int]()
        place._again |= {first: [3], second: [2]}
        place._hand_on(cell, first, Job())
        place._hand_on(other, second, Job())
        assert "is still at step 3" in str(first.exception())
        assert "more often than requeues=1 allows" in str(second.exception())
    with pytest.raises(UserError, match="is still at step 3"):
        require_progress(cell, 3, last_step(cell))
    require_progress(cell, 2, last_step(cell))
    require_progress(cell, None, -1)


@here
@pytest.mark.process
def test_a_job_that_is_refused_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name, does in {
        "sbatch": "echo sbatch: error: invalid partition specified: nowhere >&2; exit 1",
        "srun": "",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    _, runs = two(tmp_path)
    with (
        closing(SlurmRuns(tmp_path / "out", SlurmSettings(partition="nowhere"))) as place,
        pytest.raises(ConfigError, match=r"--slurm: .*invalid partition specified: nowhere"),
    ):
        run_all(runs, place, Console())


@here
def test_a_machine_without_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = two(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["sweep", str(path), "--output", str(tmp_path / "out"), "--slurm", "time=60"]) == 2
    assert "--slurm: the command sbatch was not found" in capsys.readouterr().err


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onpolicy.experiments.sweep.slurm_runs.is_installed", lambda package: package != "submitit")
    with pytest.raises(
        ConfigError.__mro__[1], match=r"needs the package submitit, .*pip install 'onpolicy-distill\[slurm\]'"
    ):
        SlurmRuns(tmp_path, SlurmSettings())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gpus", "expected key=value,key=value or a YAML file"),
        ("gpu=1", r"gpu: unknown key.*Did you mean 'gpus'"),
        ("gpus=one", "gpus: got 'one', expected a whole number from 0 on"),
        ("time=soon", r"time: got 'soon', expected minutes, M:SS, H:MM:SS, D-H, "),
        ("time=1:75", r"time: got '1:75', expected minutes"),
        ("time=0:00", r"time: got '0:00', expected minutes"),
        ("sbatch=foo", r"--slurm: sbatch: got 'foo', expected a mapping of options, or sbatch.OPTION=value"),
        ("time=2,grace=120", "grace: got 120 s, expected less than time, 2 min"),
    ],
)
def test_settings_that_are_wrong(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_settings([given])


@pytest.mark.parametrize(
    ("given", "minutes"),
    [
        ("45", 45),
        ("45:00", 45),
        ("45:01", 46),
        ("3:00:00", 180),
        ("2-3", 51 * 60),
        ("2-3:04", 51 * 60 + 4),
        ("2-3:04:05", 51 * 60 + 5),
    ],
)
def test_times_as_sbatch_reads_them(given: str, minutes: int) -> None:
    assert read_settings([f"time={given}"]).time == minutes


def test_settings_of_a_file_and_of_the_command(tmp_path: Path) -> None:
    (file := tmp_path / "cluster.yaml").write_text(
        "time: 1-02:30\npartition: h100\nsetup: [module load cuda, ulimit -n 65536]\nsbatch: {nice: 5}\n"
    )
    found = read_settings([str(file), "partition=a100,sbatch.reservation=ours"])
    assert (found.time, found.partition) == (26 * 60 + 30, "a100")
    assert found.setup == ("module load cuda", "ulimit -n 65536")
    assert {k: str(v) for k, v in found.sbatch.items()} == {"nice": "5", "reservation": "ours"}
