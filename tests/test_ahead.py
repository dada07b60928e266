"""One step off: the next step's rollouts are sampled while this step is trained.

1. rollouts are one version old from the second step on, never more, and sampled beside the training; 2. on-policy where
nothing is sampled ahead; 3. a resumed run equals one that was never stopped; 4. stopped by hand in between, it takes up the
problems that were sampled ahead; 5. rollouts older than allowed are refused; 6. with vLLM too. The truncated weight between
sampler and trainer is the terms' own (test_objectives.py).
"""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onpolicy.ahead import Ahead, Settled
from onpolicy.annotate import StaleRollouts, _refuse_stale
from onpolicy.checkpoint import read_state
from onpolicy.clock import Clock
from onpolicy.types import Metrics, Prompt, RolloutGroup
from tests.runs import metrics, run_here, start, wait_for_a_step, write_config
from tests.tiny import example

AHEAD = {"name": "transformers", "group_size": 3, "max_tokens": 8, "ahead": 1}


class Weights:
    """A generator whose rollouts say which weights made them."""

    def __init__(self) -> None:
        self.sampling, self.policy_version, self.threads = None, 0, set[str]()
        self.on_progress = lambda done, total: None

    def update_weights(self, weights: Any, *, version: int) -> None:
        self.policy_version = version


class Sampler:
    """In the place of ``Rollouts``."""

    def __init__(self, generator: Weights) -> None:
        self.generator, self.prompts = generator, type("Cursor", (), {"position": 0})()
        self.started = threading.Event()

    def __call__(self, step: int) -> tuple[Any, Metrics]:
        self.prompts.position += 2
        return [(step, self.generator.policy_version, threading.current_thread().name)], {}


def test_what_is_sampled_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onpolicy.ahead.replace", lambda rollouts, **changes: rollouts)
    generator = Weights()
    sampler = Sampler(generator)
    ahead = Ahead(sampler, Clock(), alone=lambda step: step in (3, 6))  # type: ignore[arg-type]
    everyone = Settled(generator, ahead.settle)  # type: ignore[arg-type]
    seen = []
    for step in range(1, 7):
        version = step - 1
        groups: list[Any] = list(ahead(step)[0])
        seen.append((*groups[0][:2], groups[0][2] == threading.current_thread().name))
        assert ahead.position == (None if step in (3, 6) else 2 * step)
        everyone.update_weights((), version=version + 1)
        assert everyone.policy_version == version + 1
    ahead.close()
    #       step, weights, here: the first, and the one after a checkpoint, are on-policy
    assert seen == [(1, 0, True), (2, 0, False), (3, 1, False), (4, 3, True), (5, 3, False), (6, 4, False)]


def test_a_run_with_rollouts_one_step_old(tmp_path: Path) -> None:
    config = write_config(tmp_path, generator=AHEAD, checkpoint={"every": 4}, steps=6)
    assert run_here(config, f"run_dir={tmp_path / 'whole'}") == 0
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    sampled_ahead = ["ahead/generate" in row for row in rows if row["step"] > 0]
    assert sampled_ahead == [False, True, True, True, False, True]
    gaps = [row["rollout/logprob_gap"] for row in rows if row["step"] > 0]
    assert max(gaps[0], gaps[4]) < 1e-4 < min(gaps[1:4]), (
        "the policy has moved on since, except where nothing was ahead"
    )
    assert run_here(config, f"run_dir={tmp_path / 'parts'}", "steps=4") == 0
    assert run_here(config, f"run_dir={tmp_path / 'parts'}") == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_rollouts_older_than_allowed_are_refused() -> None:
    rollout = example([5], [6]).rollout
    group = RolloutGroup(prompt=Prompt(id="p", messages=()), rollouts=(replace(rollout, policy_version=3),))
    for version, staleness in ((3, 0), (3, 1), (4, 1)):
        _refuse_stale(group, version, staleness)
    for version, staleness in ((4, 0), (5, 1), (2, 1)):
        with pytest.raises(StaleRollouts, match="version 3"):
            _refuse_stale(group, version, staleness)


def test_only_one_step_ahead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, generator=AHEAD | {"ahead": 2})
    assert run_here(config) == 2
    assert "generator.ahead: got 2, wanted 0 or 1" in capsys.readouterr().err


def test_stopped_by_hand_no_problem_is_left_out(tmp_path: Path) -> None:
    """The checkpoint stands before the problems that were sampled ahead."""
    config = write_config(tmp_path, generator=AHEAD, checkpoint={"every": 0}, steps=400)
    run = tmp_path / "run"
    process = start(config, f"run_dir={run}")
    wait_for_a_step(process, run)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    saved = read_state(next((run / "checkpoints").glob("step-*")))
    assert saved["prompts"]["position"] == 2 * saved["step"]


def test_an_error_while_sampling_ahead_ends_the_run() -> None:
    generator = Weights()
    sampler = Sampler(generator)

    def fail(step: int) -> Any:
        raise RuntimeError(f"no rollouts for step {step}")

    ahead = Ahead(sampler, Clock(), alone=lambda step: False)  # type: ignore[arg-type]
    ahead._sample = fail  # type: ignore[method-assign]
    ahead(1)
    with pytest.raises(RuntimeError, match="no rollouts for step 2"):
        ahead(2)
    ahead.close()


@pytest.mark.slow
def test_with_vllm(tmp_path: Path) -> None:
    config = write_config(tmp_path, generator=AHEAD | {"name": "vllm"}, checkpoint={"every": 0}, steps=4)
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "trainer.lr=1e-6") == 0
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert max(row["rollout/logprob_gap"] for row in rows) < 1e-3, "one small step makes little difference"
