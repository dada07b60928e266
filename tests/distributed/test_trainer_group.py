"""Trainers of several ranks, real: Ray actors and torchrun, DeepSpeed on gloo, whole runs of the command.

1. a run with two ranks logs what the local trainer's logs; 2. a rank that is killed, or stopped, is noticed, all are started
again and the run goes on from its checkpoint as if nothing had happened: every step once, the same numbers; 3. memory that
runs out halves the micro-batch; 4. an error of the user's surfaces; what kills every time ends the run with a reason; 5. a run
goes over to another number of ranks and another ZeRO stage; 6. torchrun's ranks do the same, each with its own engine, and vLLM
loads what they saved; 7. what cannot work is refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onpolicy.config.schema import RolesSettings
from onpolicy.distributed import ray_cluster
from tests.runs import VOLATILE, metrics, run_here, write_config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def ray_stays_up() -> Iterator[None]:
    ray_cluster.join(RolesSettings(trainers=2))
    yield
    ray_cluster.leave()


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


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_two_ranks_log_what_the_local_trainer_logs(tmp_path: Path, undisturbed: Path, stage: str) -> None:
    config = settings(tmp_path)
    wanted = [
        f"run_dir={tmp_path / 'run'}",
        "roles.trainers=2",
        f"trainer.config={ROOT / f'configs/deepspeed/{stage}.json'}",
    ]
    assert run_here(config, *wanted) == 0
    assert_same(tmp_path / "run", undisturbed)
    assert metrics(tmp_path / "run")[-1]["faults/trainer"] == 0


@pytest.mark.parametrize(("harm", "said"), [("kill", "died"), ("stop", "did not answer for 8 s")])
def test_a_rank_that_is_lost_costs_nothing(
    tmp_path: Path,
    undisturbed: Path,
    harm: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onpolicy.distributed.ray_trainer_group.STARTUP_FACTOR", 100)  # however slowly ranks start
    trackers = ["jsonl", {"name": f"tests.ranks.faults:{harm}", "step": 2}]
    config = settings(tmp_path, logging={"trackers": trackers}, checkpoint={"every": 1})
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "roles.trainers=2", "roles.patience=8") == 0
    assert (tmp_path / "run" / "harmed").exists()
    assert_same(tmp_path / "run", undisturbed)
    assert metrics(tmp_path / "run")[-1]["faults/trainer"] == 1
    assert said in " ".join(capsys.readouterr().out.split())


def test_memory_that_runs_out_halves_the_micro_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objective = [{"name": "tests.ranks.faults:greedy", "most": 9}]
    config = settings(tmp_path, objective=objective, contexts={}, preflight={"enabled": False}, steps=2)
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "roles.trainers=2", "trainer.layout=padded") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ran out of memory; trainer.micro_batch_tokens is 100 from now on; going back to step 0" in said
    assert [row["step"] for row in metrics(tmp_path / "run") if "train/loss" in row] == [1, 2]


def test_an_error_of_the_users_surfaces(tmp_path: Path) -> None:
    config = settings(tmp_path, objective=["tests.ranks.faults:broken"], contexts={}, preflight={"enabled": False})
    with pytest.raises(ZeroDivisionError, match="a term of the user's"):
        run_here(config, f"run_dir={tmp_path / 'run'}", "roles.trainers=2")


def test_ranks_that_die_every_time_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trackers = ["jsonl", {"name": "tests.ranks.faults:kill", "step": 1, "every_time": True}]
    config = settings(tmp_path, logging={"trackers": trackers}, checkpoint={"every": 0})
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "roles.trainers=2", "roles.restarts=1") == 2
    assert "the run went back to step 0 1 times (roles.restarts)" in " ".join(capsys.readouterr().err.split())


def test_a_run_goes_over_to_other_ranks_and_stages(tmp_path: Path, undisturbed: Path) -> None:
    config, folder = settings(tmp_path), tmp_path / "run"
    zero3 = f"trainer.config={ROOT / 'configs/deepspeed/zero3_offload.json'}"
    assert run_here(config, f"run_dir={folder}", "steps=2", "roles.trainers=2", zero3) == 0
    assert run_here(config, f"run_dir={folder}", "steps=3", "roles.trainers=1") == 0
    assert (
        run_here(config, f"run_dir={folder}", "steps=4", "trainer={name: local, lr: 0.001, micro_batch_tokens: 200}")
        == 0
    )
    assert_same(folder, undisturbed)


def launched(config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
    ]
    return subprocess.run(
        [sys.executable, *launcher, "-m", "onpolicy", "train", str(config), *overrides],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("generator", ["transformers", "vllm"])
def test_ranks_of_torchrun(tmp_path: Path, undisturbed: Path, generator: str) -> None:
    config = settings(tmp_path, generator={"name": generator, "group_size": 3, "max_tokens": 8})
    done = launched(config, f"run_dir={tmp_path / 'run'}", f"trainer.config={ROOT / 'configs/deepspeed/zero3.json'}")
    assert done.returncode == 0, done.stderr[-3000:]
    if generator == "transformers":
        assert_same(tmp_path / "run", undisturbed)
    rows = [row for row in metrics(tmp_path / "run") if "rollout/logprob_gap" in row]
    assert len(rows) == 4 and max(row["rollout/logprob_gap"] for row in rows) < 1e-4, "each engine has the new weights"
    saved = tmp_path / "run" / "checkpoints" / "step-000004"
    one = write_config(
        tmp_path / "again", model={"path": str(saved)}, generator={"name": "vllm", "group_size": 2, "max_tokens": 8}
    )
    assert run_here(one, f"run_dir={tmp_path / 'again' / 'run'}", "steps=1") == 0, "vLLM loads what was saved"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["trainer={name: local}"],
            "trainer.name: 'local' runs in one process, and there are 2 ranks; wanted deepspeed",
        ),
        (["generator.staleness=1"], "generator.staleness: 1 wants generators that sample while the ranks train"),
    ],
)
def test_what_torchrun_cannot_start(tmp_path: Path, overrides: list[str], said: str) -> None:
    done = launched(settings(tmp_path), f"run_dir={tmp_path / 'run'}", *overrides)
    assert done.returncode != 0 and said in " ".join(done.stderr.split())


def test_a_stopped_rank_is_not_left_behind() -> None:
    from tests.ranks.faults import ranks

    assert not ranks()
