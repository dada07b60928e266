"""Trainers of several ranks, real: Ray actors and torchrun, DeepSpeed on gloo, whole runs of the command.

1. a run with two ranks logs what the local trainer's logs; 2. a rank that is killed, or stopped, is noticed, all are started
again and the run goes on from its checkpoint as if nothing had happened: every step once, the same numbers; 3. memory that
runs out halves the micro-batch; 4. an error of the user's surfaces; what kills every time ends the run with a reason; 5. a run
goes over to another number of ranks and another ZeRO stage; 6. torchrun's ranks do the same, each with its own engine, and vLLM
loads what they saved; 7. what cannot work is refused.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onpolicy.distributed.heartbeat import Failure, HeartbeatMonitor
from onpolicy.distributed.ray_trainer_group import RayTrainerGroup
from tests.runs import VOLATILE, metrics, on_ranks, run_here, write_config

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.usefixtures("ray")]


def settings(folder: Path, **changes: Any) -> Path:
    trainer = {
        "name": "deepspeed",
        "lr": 1e-3,
        "micro_batch_tokens": 200,
        "config": str(ROOT / "configs/deepspeed/zero2.json"),
    }
    return write_config(folder, **{"trainer": trainer, "steps": 4, **changes})


def compared(folder: Path) -> list[dict[str, float]]:
    """What a run logged, but for what the machine and the faults have to do with."""
    left_out = (*VOLATILE, "faults/")
    return [{k: v for k, v in row.items() if not any(part in k for part in left_out)} for row in metrics(folder)]


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = compared(one), compared(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, wanted in zip(ours, theirs, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5), row["step"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the local trainer."""
    folder = tmp_path_factory.mktemp("local")
    config = settings(folder, trainer={"name": "local", "lr": 1e-3, "micro_batch_tokens": 200})
    assert run_here(config, f"run_dir={folder / 'run'}") == 0
    return folder / "run"


def test_two_ranks_log_what_the_local_trainer_logs(tmp_path: Path, undisturbed: Path) -> None:
    """Under ZeRO 3; the next test has ZeRO 2."""
    zero3 = f"trainer.config={ROOT / 'configs/deepspeed/zero3.json'}"
    assert run_here(settings(tmp_path), f"run_dir={tmp_path / 'run'}", "distributed.num_trainers=2", zero3) == 0
    assert_same(tmp_path / "run", undisturbed)
    assert metrics(tmp_path / "run")[-1]["faults/trainer"] == 0


def test_ranks_that_are_lost_cost_nothing(
    tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed after the second step, one is stopped after the third.

    A rank has 300 s to answer, however busy the machine is, but for the moment in which one is known to be stopped.
    """
    stopped, found, poll = tmp_path / f"run/harmed-{int(signal.SIGSTOP)}", list[Failure](), HeartbeatMonitor.poll

    def impatient(monitor: HeartbeatMonitor, *, busy: bool = True) -> Failure | None:
        if stopped.exists() and not found:
            monitor.timeout = 6.0
            found.extend(filter(None, [failure := poll(monitor, busy=busy)]))
            return failure
        return poll(monitor, busy=busy)

    monkeypatch.setattr(HeartbeatMonitor, "poll", impatient)
    harm = [{"name": "tests.ranks.faults:kill", "step": 2}, {"name": "tests.ranks.faults:stop", "step": 3}]
    config = settings(tmp_path, logging={"trackers": ["jsonl", *harm]}, checkpoint={"every": 1})
    assert (
        run_here(
            config, f"run_dir={tmp_path / 'run'}", "distributed.num_trainers=2", "distributed.heartbeat_timeout_s=300"
        )
        == 0
    )
    assert len(list((tmp_path / "run").glob("harmed-*"))) == 2
    assert_same(tmp_path / "run", undisturbed)
    assert metrics(tmp_path / "run")[-1]["faults/trainer"] == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "died" in said and "did not answer for 300 s" in said


@pytest.mark.nightly
def test_memory_that_runs_out_halves_the_micro_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = [{"name": "tests.ranks.faults:greedy", "most": 9}]
    config = settings(tmp_path, objective=objective, contexts={}, preflight={"enabled": False}, steps=2)
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "distributed.num_trainers=2", "trainer.layout=padded") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ran out of memory; trainer.micro_batch_tokens is 100 from now on; going back to step 0" in said
    assert [row["step"] for row in metrics(tmp_path / "run") if "train/loss" in row] == [1, 2]


@pytest.mark.nightly
def test_a_step_may_take_longer_than_a_rank_may_be_silent(tmp_path: Path) -> None:
    """Before two updates the log-probabilities are read, in one phase of six passes of two seconds on each rank, where four seconds without
    a sign of life are too many."""
    objective = [{"name": "tests.ranks.faults:slow", "seconds": 2.0}]
    data = {"name": "file", "path": str(tmp_path / "data.jsonl"), "prompts_per_step": 4}
    config = settings(tmp_path, objective=objective, data=data, contexts={}, preflight={"enabled": False}, steps=2)
    short = ["trainer.micro_batch_tokens=20", "trainer.layout=padded", "distributed.heartbeat_timeout_s=4"]
    assert (
        run_here(
            config, f"run_dir={tmp_path / 'run'}", "distributed.num_trainers=2", "trainer.updates_per_step=2", *short
        )
        == 0
    )
    (row,) = metrics(tmp_path / "run")[-1:]
    assert row["step"] == 2 and row["faults/trainer"] == 0


@pytest.mark.nightly
def test_an_error_of_the_users_surfaces(tmp_path: Path) -> None:
    config = settings(tmp_path, objective=["tests.ranks.faults:broken"], contexts={}, preflight={"enabled": False})
    with pytest.raises(ZeroDivisionError, match="a term of the user's"):
        run_here(config, f"run_dir={tmp_path / 'run'}", "distributed.num_trainers=2")


@pytest.mark.nightly
def test_ranks_that_die_every_time_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trackers = ["jsonl", {"name": "tests.ranks.faults:kill", "step": 1, "every_time": True}]
    config = settings(tmp_path, logging={"trackers": trackers}, checkpoint={"every": 0})
    assert (
        run_here(config, f"run_dir={tmp_path / 'run'}", "distributed.num_trainers=2", "distributed.max_restarts=1") == 2
    )
    assert "the run went back to step 0 1 times (distributed.max_restarts)" in " ".join(capsys.readouterr().err.split())


def test_a_run_goes_over_to_other_ranks_and_stages(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks write and read their own parts: what passes through the driver is a fraction of the state."""
    sizes: dict[str, int] = {}
    call_all = RayTrainerGroup.call_all

    def measured(group: RayTrainerGroup, method: str, *arguments: Any) -> Any:
        answer = call_all(group, method, *arguments)
        sizes[method] = max(sizes.get(method, 0), len(pickle.dumps((arguments, answer))))
        return answer

    monkeypatch.setattr(RayTrainerGroup, "call_all", measured)
    config, folder = settings(tmp_path), tmp_path / "run"
    zero3 = f"trainer.config={ROOT / 'configs/deepspeed/zero3_offload.json'}"
    assert run_here(config, f"run_dir={folder}", "steps=2", "distributed.num_trainers=2", zero3) == 0
    assert run_here(config, f"run_dir={folder}", "steps=3", "distributed.num_trainers=1") == 0
    assert (
        run_here(config, f"run_dir={folder}", "steps=4", "trainer={name: local, lr: 0.001, micro_batch_tokens: 200}")
        == 0
    )
    assert_same(folder, undisturbed)
    saved = folder / "checkpoints" / "step-000003" / "state"
    assert sum(file.stat().st_size for file in saved.iterdir()) > 1_000_000
    assert {"save", "trainer.state", "trainer.load_state"} <= sizes.keys()
    assert max(sizes[method] for method in ("save", "trainer.state", "trainer.load_state")) < 10_000, sizes


def launched(config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return on_ranks(2, "onpolicy", "train", str(config), *overrides)


def started(config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onpolicy", "train", str(config), *overrides]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )


def torchrun(folder: Path, generator: str) -> Path:
    """A run of two ranks, each with an engine of its own: the command starts them, and torchrun those that go on."""
    config = settings(folder, generator={"name": generator, "group_size": 3, "max_tokens": 8})
    zero3 = f"trainer.config={ROOT / 'configs/deepspeed/zero3.json'}"
    done = started(config, f"run_dir={folder / 'run'}", zero3, "steps=2", "trainer.devices=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "computes in float32 on 2 ranks (0: cpu, 1: cpu)" in " ".join(done.stdout.split())
    done = launched(config, f"run_dir={folder / 'run'}", zero3, "steps=4")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row for row in metrics(folder / "run") if "rollout/logprob_gap" in row]
    assert len(rows) == 4 and max(row["rollout/logprob_gap"] for row in rows) < 1e-4, "each engine has the new weights"
    return folder / "run"


def test_ranks_of_torchrun(tmp_path: Path, undisturbed: Path) -> None:
    assert_same(torchrun(tmp_path, "transformers"), undisturbed)


@pytest.mark.nightly
@pytest.mark.vllm
def test_ranks_of_torchrun_with_vllm(tmp_path: Path) -> None:
    saved = torchrun(tmp_path, "vllm") / "checkpoints" / "step-000004"
    one = write_config(
        tmp_path / "again", model={"path": str(saved)}, generator={"name": "vllm", "group_size": 2, "max_tokens": 8}
    )
    assert run_here(one, f"run_dir={tmp_path / 'again' / 'run'}", "steps=1") == 0, "vLLM loads what was saved"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["trainer={name: local}"],
            "trainer.name: 'local' runs in one process, and there are 2 ranks; expected deepspeed",
        ),
        (
            ["generator.max_staleness=1"],
            "generator.max_staleness: 1 wants generators that sample while the ranks train",
        ),
    ],
)
def test_what_torchrun_cannot_start(tmp_path: Path, overrides: list[str], said: str) -> None:
    done = launched(settings(tmp_path), f"run_dir={tmp_path / 'run'}", *overrides)
    assert done.returncode != 0 and said in " ".join(done.stderr.split())


def test_a_stopped_rank_is_not_left_behind() -> None:
    from tests.ranks.faults import ranks

    assert not ranks()
