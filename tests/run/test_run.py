"""Whole runs on a tiny model.

1. a run leaves metrics, samples with both prompts, a config and a checkpoint that transformers loads; 2. the same seed
gives the same run to the last bit; 3. resumed after a finished part, after kill -9 in the middle of a step or of a save,
and after Ctrl-C, the metrics equal those of an uninterrupted run to the last bit; 4. a run folder with other settings is
refused; 5. a full disk loses nothing; 6. evaluation runs in training and on its own; 7. keep-last and keep-best.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from onpolicy.config.load import load
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.run import Run
from onpolicy.utils import disk
from onpolicy.utils.errors import CheckpointError
from onpolicy.utils.faults import RoleLost
from tests.runs import metrics, run_here, save, start, state_alone, wait_for_a_step, write_config

SETS = {"easy": {"name": "gym", "task": "chain_sum", "size": 3}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_here(write_config(folder), f"run_dir={folder / 'run'}", "steps=5") == 0
    return folder


def test_what_a_run_leaves_behind(finished: Path) -> None:
    run = finished / "run"
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for name in (
        "reward/mean",
        "distill/divergence",
        "policy/entropy",
        "train/grad_norm",
        "rollout/completion_length/mean",
    ):
        assert all(name in row for row in rows), name
    assert all(row["rollout/logprob_gap"] < 1e-4 for row in rows), (
        "the generator must have the trainer's weights at every step"
    )
    first = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    assert "+" in first["student_prompt"] and "Correct solution:" in first["teacher_prompts"]["teacher"]
    assert load(run / "config.yaml").steps == 5
    last = run / "checkpoints" / "step-000005"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(last), AutoTokenizer.from_pretrained(last)
    assert tokenizer.chat_template and model.config.model_type == "qwen3"
    start_model = AutoModelForCausalLM.from_pretrained(finished / "model")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start_model.parameters(), strict=True))


def test_the_same_seed_gives_the_same_run(finished: Path, tmp_path: Path) -> None:
    config = finished / "config.yaml"
    assert run_here(config, f"run_dir={tmp_path / 'again'}", "steps=5") == 0
    assert metrics(tmp_path / "again") == metrics(finished / "run")
    assert run_here(config, f"run_dir={tmp_path / 'other'}", "steps=2", "seed=1") == 0
    assert metrics(tmp_path / "other")[0] != metrics(finished / "run")[0]


def test_a_run_is_continued_to_the_last_bit(finished: Path, tmp_path: Path) -> None:
    config, run = finished / "config.yaml", tmp_path / "run"
    assert run_here(config, f"run_dir={run}", "steps=2") == 0
    assert run_here(config, f"run_dir={run}", "steps=5") == 0
    assert metrics(run) == metrics(finished / "run")


def test_a_checkpoint_of_step_0_is_resumed(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped before its first step ends saves step 0; its weights are as new as the generator's own."""
    config, run = finished / "config.yaml", tmp_path / "run"

    def no_steps(self: Run) -> Iterator[int]:
        self.save(0, {})
        self.checkpoints.wait()
        return iter(())

    with monkeypatch.context() as patched:
        patched.setattr(Run, "remaining_steps", no_steps)
        run_here(config, f"run_dir={run}", "steps=5")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000"]
    assert run_here(config, f"run_dir={run}", "steps=5") == 0
    assert metrics(run) == metrics(finished / "run")


@pytest.mark.process
@pytest.mark.parametrize("moment", ["step", "save"])
def test_kill_9_then_resume(finished: Path, tmp_path: Path, moment: str) -> None:
    """The process is killed while step 3 runs, or while its checkpoint is half written."""
    config, run = finished / "config.yaml", tmp_path / "run"
    process = start(config, f"run_dir={run}", "steps=5", ONPOLICY_TEST_DIE=moment, PYTHONPATH="tests/dying")
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stdout.read() if process.stdout else ""
    done = [c.step for c in Checkpoints(run / "checkpoints", keep_last=2, best=None).all()]
    # the second is written while step 3 runs; where the third is half written it is whole
    assert done[-1] in ((1, 2) if moment == "step" else (2,)), "the third checkpoint must not count"
    assert run_here(config, f"run_dir={run}", "steps=5") == 0
    assert metrics(run) == metrics(finished / "run")


def test_a_torn_checkpoint_is_passed_over(finished: Path, tmp_path: Path) -> None:
    config, run = finished / "config.yaml", tmp_path / "run"
    assert run_here(config, f"run_dir={run}", "steps=3") == 0
    weights = run / "checkpoints" / "step-000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run_here(config, f"run_dir={run}", "steps=5") == 0
    assert metrics(run) == metrics(finished / "run")


@pytest.mark.process
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(finished: Path, tmp_path: Path) -> None:
    config, run = finished / "config.yaml", tmp_path / "run"
    process = start(config, f"run_dir={run}", "steps=500")
    wait_for_a_step(process, run)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130 and "resume with" in output and f"run_dir={run}" in output, output
    assert "Traceback" not in output
    stopped = metrics(run)[-1]["step"]
    checkpoint = Checkpoints(run / "checkpoints", keep_last=2, best=None).latest()
    assert checkpoint is not None and checkpoint.step == stopped


def test_a_folder_with_other_settings_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = metrics(finished / "run")
    assert run_here(finished / "config.yaml", f"run_dir={finished / 'run'}", "trainer.lr=0.5") == 2
    assert "trainer.lr: 0.001 there, 0.5 here" in capsys.readouterr().err
    assert metrics(finished / "run") == before


HARD = resource.getrlimit(resource.RLIMIT_FSIZE)[1]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A quota of a kind that anybody may set."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, HARD))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))


def test_a_full_disk_loses_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file may grow past a limit below the size of the weights: to the program that is a full disk."""
    config, run = finished / "config.yaml", tmp_path / "run"
    assert run_here(config, f"run_dir={run}", "steps=2") == 0
    monkeypatch.setattr("onpolicy.utils.disk.LIMIT", 1.0)
    monkeypatch.setattr("onpolicy.utils.disk.PAUSE", 0.3)
    with no_file_above(100_000):
        assert run_here(config, f"run_dir={run}", "steps=5") == 2
    said = capsys.readouterr()
    assert "tried again at the next step" in said.out and "disk full: waiting for space" in said.out
    assert "could not save" in said.err and "step-000005" in said.err and "step-000002" in " ".join(said.err.split())
    assert not list((run / "checkpoints").glob(".*")), "half a checkpoint must not stay behind"
    assert [row["step"] for row in metrics(run)] == [row["step"] for row in metrics(finished / "run")], "it went on"
    assert run_here(config, f"run_dir={run}", "steps=5") == 0
    assert [row for row in metrics(run) if not row.pop("checkpoint/failed", 0.0) and row] == [
        row for row in metrics(finished / "run") if not row.pop("checkpoint/failed", 0.0)
    ]


def test_a_run_waits_for_disk_space(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space comes back while a line of metrics waits: every step is there once, and every line is whole."""
    attempts, pause = [], disk._pause

    def until_the_third(*since: Any) -> bool:
        attempts.append(1)
        if len(attempts) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))
        return pause(*since)

    monkeypatch.setattr("onpolicy.utils.disk.PAUSE", 0.05)
    monkeypatch.setattr(disk, "_pause", until_the_third)
    config, run = finished / "config.yaml", tmp_path / "run"
    with no_file_above(10_000):
        assert run_here(config, f"run_dir={run}", "checkpoint.every=0", "steps=5") == 0
    assert len(attempts) >= 3
    said = capsys.readouterr().out
    assert "disk full: waiting for space" in said and "disk space is available again" in said
    assert [row["step"] for row in metrics(run)] == [row["step"] for row in metrics(finished / "run")]


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_evaluation_while_training_and_on_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onpolicy.cli import main

    config = write_config(tmp_path, eval={"every": 2, "samples_per_problem": 2, "pass_at": [1, 2], "sets": SETS})
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=3") == 0
    rows = metrics(tmp_path / "run")
    measured = {row["step"]: row for row in rows if "eval/easy/avg@2" in row}
    assert sorted(measured) == [0, 2, 3]
    assert measured[2]["eval/easy/avg@2/low"] <= measured[2]["eval/easy/avg@2"] <= measured[2]["eval/easy/avg@2/high"]
    samples = (tmp_path / "run" / "eval" / "step-000002" / "easy.jsonl").read_text().splitlines()
    assert len(samples) == 3 and len(json.loads(samples[0])["completions"]) == 2
    capsys.readouterr()
    trained = tmp_path / "run" / "checkpoints" / "step-000003"
    assert main(["eval", str(config), f"model.path={trained}", f"run_dir={tmp_path / 'eval'}"]) == 0
    assert "easy" in capsys.readouterr().out
    ours = (tmp_path / "eval" / "easy.jsonl").read_text()
    assert ours == (tmp_path / "run" / "eval" / "step-000003" / "easy.jsonl").read_text(), (
        "same weights, same seed, same samples"
    )
    other = [f"model.path={trained}", f"run_dir={tmp_path / 'eval'}", "eval.temperature=0.5"]
    assert main(["eval", str(config), *other]) == 2
    assert "holds another evaluation (eval.temperature: 1.0 there, 0.5 here)" in capsys.readouterr().err
    two = [f"model.path={trained}", f"run_dir={tmp_path / 'two'}", "distributed.num_generators=2"]
    assert main(["eval", str(config), *two]) == 0
    assert (tmp_path / "two" / "easy.jsonl").read_text() == ours, "replicas share the problems and change nothing"
    assert json.loads((tmp_path / "two" / "results.json").read_text())["results"]["easy"]["problems,none"] > 0


def test_the_best_and_the_last_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep_last=2, best="score")
    for step, value in enumerate([0.1, 0.9, 0.3, 0.2], start=1):
        save(checkpoints, step, state_alone({"a": 1}), {"score": value})
    assert [c.step for c in checkpoints.all()] == [2, 3, 4]


def test_what_a_process_that_died_left_half_written_goes(tmp_path: Path) -> None:
    checkpoints, left = Checkpoints(tmp_path / "c", keep_last=2, best=None), tmp_path / "c" / ".step-000009.partial"
    left.mkdir(parents=True)
    (left / "state.json").write_text("{")
    save(checkpoints, 1, state_alone({"a": 1}), {})
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-000001"]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """What is copied is written later, on a thread."""
    checkpoints, written = Checkpoints(tmp_path / "c", keep_last=2, best=None), threading.Event()

    def later(folder: Path) -> Callable[[], None]:
        def rest() -> None:
            written.wait()
            (folder / "late").touch()

        return rest

    checkpoints.begin(1, later, {})
    assert not checkpoints.all(), "it came back before anything was written"
    written.set()
    checkpoints.wait()
    assert (checkpoints.all()[0].path / "late").exists()


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_checkpoint_that_could_not_be_written_is_told_of_and_begun_once_more(tmp_path: Path, when: str) -> None:
    failures = [OSError("no space left")]

    def work() -> None:
        if failures:
            raise failures.pop()

    def write(folder: Path) -> Callable[[], None]:
        (folder / "half").touch()
        if when == "at once":
            work()
        return work

    checkpoints = Checkpoints(tmp_path / "c", keep_last=2, best=None)
    checkpoints.begin(1, write, {})
    with pytest.raises(CheckpointError, match=r"step-000001.*no space left.*no earlier checkpoint"):
        checkpoints.begin(2, state_alone(), {})
    assert not list((tmp_path / "c").iterdir())
    checkpoints.finish()
    assert [c.step for c in checkpoints.all()] == [1]


def test_a_trainer_that_is_lost_is_no_checkpoint_that_failed(tmp_path: Path) -> None:
    def lose(folder: Path) -> Callable[[], None]:
        raise RoleLost("rank 1 of 2 died")

    checkpoints = Checkpoints(tmp_path / "c", keep_last=2, best=None)
    with pytest.raises(RoleLost):
        checkpoints.begin(1, lose, {})


def test_metrics_go_to_tensorboard_and_to_a_users_own_tracker(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = write_config(tmp_path)
    assert (
        run_here(
            config, f"run_dir={tmp_path / 'run'}", "logging.trackers=[jsonl, tensorboard, tests.runs:counting_tracker]"
        )
        == 0
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx([row["train/loss"] for row in metrics(tmp_path / "run")])
    assert (tmp_path / "run" / "count").read_text() == "3 steps"


@pytest.mark.process
def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    program = Path(sys.executable).with_name("onpolicy")
    done = subprocess.run([program, "check", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "is valid" in " ".join(done.stdout.split())


def test_thirty_steps_on_policy_move_the_student_towards_its_privileged_teacher(tmp_path: Path) -> None:
    """Fresh rollouts every step, evaluated on what each step sampled; the teacher stays what it was."""
    config = write_config(
        tmp_path, teacher={"name": "frozen"}, objective=[{"name": "distill", "divergence": "forward_kl"}], steps=30
    )
    assert (
        run_here(
            config, f"run_dir={tmp_path / 'run'}", "trainer.lr=3e-3", "data.prompts_per_step=4", "checkpoint.every=0"
        )
        == 0
    )
    divergence = [row["distill/divergence"] for row in metrics(tmp_path / "run")]
    assert len(divergence) == 30
    assert sum(divergence[-5:]) < 0.6 * sum(divergence[:5]), divergence
