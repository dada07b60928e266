"""A sweep over a real Ray on this machine.

1. its runs are those of a sweep without Ray, to the last digit, and are compared alike; 2. a worker that is killed is replaced once and
its run goes on from its checkpoint, one that is lost twice fails and the others go on; 3. a sweep that is called off lets
its runs finish their step; 4. folders that nodes do not share, and runs for which no node has room, are said.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from onpolicy.cli import main
from onpolicy.config.schema import DistributedSettings
from onpolicy.distributed import ray_cluster
from onpolicy.experiments.sweep import ray_runs, shared_folder
from onpolicy.experiments.sweep.grid import Cell, cells
from onpolicy.experiments.sweep.processes import STOPPED
from onpolicy.experiments.sweep.ray_runs import RayRuns
from onpolicy.experiments.sweep.sweep import run_all
from onpolicy.utils.errors import ConfigError
from tests.experiments.test_sweep import grid
from tests.runs import metrics

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray")]


def two(folder: Path, hold: Path | None = None, **changes: Any) -> tuple[Path, list[Cell]]:
    path = grid(folder, **{"seeds": [0], "confounds": [], "axes": ["trainer.lr"],
                           "arms": {"plain": {}, "slow": {"trainer.lr": 1e-6}}, **changes})  # fmt: skip
    held = ("steps=6", f"rewards=[{{name: tests.runs:held, hold: {hold}}}]") if hold else ()
    return path, list(cells(path, folder / "out", held))


def until(true: Callable[[], bool]) -> None:
    """No deadline but pytest's own."""
    while not true():
        time.sleep(0.05)


def saved_a_step(cell: Cell, future: Future[int]) -> None:
    """Returns when the run has written its first checkpoint."""
    while not (cell.folder / "checkpoints/step-000001").is_dir():
        assert not future.done(), cell.log.read_text()
        time.sleep(0.05)


def runs_in(cell: Cell) -> list[int]:
    """Processes of the cell's run; without what they fork, which has their command line until it executes its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f'run_dir="{cell.folder}"'.encode() in words:
            found.append(int(path.parent.name))
    return [pid for pid in found if parent_of(pid) not in found]


def workers_at(cell: Cell) -> set[int]:
    """Processes of Ray that run the cell, or wait until nobody else does: they have its log open."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.joinpath("cmdline").read_bytes().startswith(b"ray::run_on_node"):
                found |= {int(path.name) for fd in (path / "fd").iterdir() if os.readlink(fd) == str(cell.log)}
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return None


def test_a_sweep_over_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, found = two(tmp_path)
    assert main(["sweep", str(path), "--output", str(tmp_path / "out"), "--ray", "local"]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 0 finished" in said and "failed" not in said and "slow" in said
    assert all(cell.finished() for cell in found) and (tmp_path / "out/report.html").is_file()
    assert main(["sweep", str(path), "--output", str(tmp_path / "out"), "--ray", "local"]) == 0
    assert "2 runs, 2 finished" in capsys.readouterr().out
    jobs = str(os.cpu_count() or 1)  # one thread each, as there
    assert main(["sweep", str(path), "--output", str(tmp_path / "here"), "--jobs", jobs]) == 0
    for cell in found:
        assert metrics(cell.folder) == metrics(tmp_path / "here" / cell.folder.relative_to(tmp_path / "out"))
    texts = [(tmp_path / name / "comparison.json").read_text() for name in ("out", "here")]
    assert texts[0] == texts[1] and '"differences"' in texts[0]


@pytest.mark.nightly
def test_a_worker_that_is_lost(tmp_path: Path) -> None:
    """Whether Ray takes its run along or leaves it behind, nobody else is in its folder; the run goes on from its checkpoint."""
    (hold := tmp_path / "hold").touch()
    _, (cell, _) = two(tmp_path, hold)
    place = RayRuns("local")
    future = place.start(cell)
    saved_a_step(cell, future)
    (run,) = runs_in(cell)
    worker = parent_of(run)
    assert worker is not None
    os.kill(run, signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    while not future.done() and not workers_at(cell) - {worker}:
        assert len(runs_in(cell)) <= 1
        time.sleep(0.05)
    assert len(runs_in(cell)) <= 1
    hold.unlink()
    if run in runs_in(cell):
        os.kill(run, signal.SIGKILL)
    assert future.result() == 0 and place.failure(cell, future) is None
    assert cell.log.read_text().count("resumed at step") == 1 and cell.finished()
    place.close()


@pytest.mark.nightly
def test_a_run_that_is_lost_twice_fails_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = two(tmp_path, arms={"plain": {}, "deadly": {"trainer.lr": 1e-6}})
    monkeypatch.setattr(ray_runs, "run_on_node", deadly)
    monkeypatch.setattr(Cell, "finished", lambda self: True)
    place = RayRuns("local")
    failed = run_all(found, place, Console())
    place.close()
    assert [c.arm for c in failed] == ["deadly"]
    assert (found[1].folder / "tries").read_text() == "xx", "once more, and no more"
    assert "lost again when it was started once more" in capsys.readouterr().out


def deadly(cell: Cell, folder: str) -> int:
    """Stands for a task whose node goes down."""
    if cell.arm == "deadly":
        with (cell.folder / "tries").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.nightly
def test_a_sweep_that_is_called_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runs, "GRACE", 600.0)  # a step may take long on a busy machine
    (hold := tmp_path / "hold").touch()
    _, (cell, waiting) = two(tmp_path, hold)
    place = RayRuns("local", cpus=os.cpu_count() or 1)
    assert place.at_once == 1
    future = place.start(cell)
    place.start(waiting)
    saved_a_step(cell, future)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(let_go, hold, cell)
        place.close()
    assert future.result() == STOPPED and not runs_in(cell)
    assert not runs_in(waiting) and not waiting.log.exists()
    assert "stopped after step" in cell.log.read_text() and not cell.finished()


def let_go(hold: Path, cell: Cell) -> None:
    """As soon as the run knows that it is to stop."""
    until(lambda: "stopping after this step" in cell.log.read_text())
    hold.unlink()


@pytest.mark.nightly
def test_folders_that_nodes_do_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_folder, "SYNC_TIMEOUT", 0.1)
    _, (cell, _) = two(tmp_path)
    place = RayRuns("local")
    monkeypatch.setattr(ray_runs, "run_on_node", lambda cell, folder: 0)  # ends well, elsewhere
    future = place.start(cell)
    future.result()
    with pytest.raises(ConfigError, match=r"its checkpoint is not here '.*out/plain/seed-0'.*all nodes share"):
        place.failure(cell, future)
    monkeypatch.undo()
    cell.folder.rmdir()
    for folder in (tmp_path / "gone", tmp_path):
        with pytest.raises(ConfigError, match="its node does not see the folder"):
            shared_folder.run_on_node(cell, str(folder))
    monkeypatch.setattr(ray_runs, "run_on_node", without_its_folder)
    future = place.start(cell)
    with pytest.raises(ConfigError, match="its node does not see the folder"):
        place.failure(cell, future)
    place.close()


def without_its_folder(cell: Cell, folder: str) -> int:
    cell.folder.rmdir()
    return shared_folder.run_on_node(cell, folder)


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="--cpus-per-run: got 4096, but no node of the cluster has more than"):
        RayRuns("local", cpus=4096)
    with pytest.raises(ConfigError, match=r"--gpus-per-run: got 0.5, but no node of the cluster has more than 0 GPUs"):
        RayRuns("local", gpus=0.5)


def test_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: DistributedSettings, *, key: str) -> None:
        raise ConfigError(f"{key}: cannot join {settings.address!r}: nobody is there")

    monkeypatch.setattr(ray_cluster, "join", refuse)
    path, _ = two(tmp_path)
    assert main(["sweep", str(path), "--output", str(tmp_path / "out"), "--ray", "10.0.0.1:1"]) == 2
    assert "--ray: cannot join '10.0.0.1:1'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sweep", str(path), "--ray", "local", "--jobs", "2"])
