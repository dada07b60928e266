"""The soak finds what it is there to find, and a short one comes out clean."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import chaos, checks
from benchmarks.soak.checks import Sample

ROOT = Path(__file__).resolve().parents[2]
IDS = ["a", "b", "c", "d"]


def logged(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step} for step in steps]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (logged(1, 2, 4), "missing steps 3"),
        (logged(1, 2, 2, 3, 4), "steps logged more than once 2"),
        (logged(1, 2, 3, 4, 5), "steps nobody asked for 5"),
        (logged(1, 3, 2, 4), "the lines are not in order"),
        ([*logged(1, 2, 3, 4), {}], "unreadable lines 5"),
    ],
)
def test_a_missing_a_doubled_and_a_torn_line_is_found(rows: list[dict[str, Any]], complaint: str) -> None:
    found = checks.steps_once(rows, 4)
    assert not found.ok
    assert complaint in found.detail


def test_steps_logged_once_pass() -> None:
    assert checks.steps_once(logged(1, 2, 3, 4), 4).ok


def trained(resolved: dict[int, list[str]]) -> list[dict[str, Any]]:
    return [{"step": step, "prompt_id": prompt} for step, prompts in resolved.items() for prompt in prompts]


GOOD = {1: ["a", "b", "a", "b"], 2: ["c", "d", "c", "d"], 3: ["d", "b", "d", "b"], 4: ["a", "c", "a", "c"]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({2: ["c", "a", "c", "a"]}, "epoch 1: never d"),
        ({2: ["c", "a", "c", "a"]}, "epoch 1: in several steps a"),
        ({1: ["a", "b", "a"]}, "epoch 1: not 2 rollouts b in step 1"),
        ({1: ["a", "b", "a", "b", "b"]}, "epoch 1: not 2 rollouts b in step 1"),
        ({4: ["a", "x", "a", "x"]}, "epoch 2: unknown x"),
        ({3: ["d", "d"]}, "epoch 2: steps without 2 problems 3"),
    ],
)
def test_a_lost_and_a_doubled_prompt_is_found(change: dict[int, list[str]], complaint: str) -> None:
    found = checks.prompts_once(trained(GOOD | change), IDS, steps=4, per_step=2, group=2)
    assert not found.ok
    assert complaint in found.detail


def test_prompts_trained_once_an_epoch_pass() -> None:
    assert checks.prompts_once(trained(GOOD), IDS, steps=4, per_step=2, group=2).ok


def test_staleness_above_the_bound_and_staleness_that_nobody_measured_is_found() -> None:
    key = "rollout/staleness/max"
    assert checks.staleness_bounded([{"step": 1, key: 0}, {"step": 2, key: 1}], 1).ok
    assert "above 1 in steps 2" in checks.staleness_bounded([{"step": 1, key: 0}, {"step": 2, key: 2}], 1).detail
    assert "not measured in steps 2" in checks.staleness_bounded([{"step": 1, key: 0}, {"step": 2}], 1).detail
    assert not checks.staleness_bounded([], 1).ok


def lives(memory_per_step: float, handles_per_step: float = 0.0, steps: int = 60) -> list[Sample]:
    return [
        Sample(2.0 * step, "driver", "1@0", step, 500 + memory_per_step * step, 40 + int(handles_per_step * step))
        for step in range(steps)
    ]


def test_growing_memory_and_growing_handles_are_found_and_a_warm_up_is_not() -> None:
    flat, leaking, opening = lives(0.0), lives(4.0), lives(0.0, 2.0)
    assert all(check.ok for check in checks.nothing_grows(flat))
    assert [check.what for check in checks.nothing_grows(leaking) if not check.ok] == ["memory of driver stays"]
    assert [check.what for check in checks.nothing_grows(opening) if not check.ok] == ["file handles of driver stay"]
    warm = [replace(s, memory_mib=min(500.0, 50.0 * s.step)) for s in flat]
    assert all(check.ok for check in checks.nothing_grows(warm))


def test_a_process_that_was_hardly_seen_is_said_not_to_be_judged() -> None:
    (memory, handles) = checks.nothing_grows(lives(50.0, steps=checks.WARM_UP + checks.ENOUGH - 1))
    assert memory.ok and "not judged" in memory.detail and "not judged" in handles.detail


def test_every_kind_of_fault_comes_as_often_as_it_should() -> None:
    kinds = chaos.shuffled(list(chaos.KINDS), seed=3)
    bag = [next(kinds) for _ in range(sum(weight for weight, _ in chaos.KINDS.values()))]
    assert {kind: bag.count(kind) for kind in chaos.KINDS} == {
        kind: weight for kind, (weight, _) in chaos.KINDS.items()
    }


@pytest.mark.nightly
@pytest.mark.process
@pytest.mark.parametrize(
    ("faults", "kinds"),
    [
        (1, ["kill"]),
        # the soak itself ends a run that makes no step for ten minutes; 144 steps and 12 faults take an hour on a busy machine
        pytest.param(12, list(chaos.KINDS), marks=[pytest.mark.nightly, pytest.mark.timeout(4 * 3600)]),
    ],
)
def test_a_short_soak_loses_nothing(tmp_path: Path, faults: int, kinds: list[str]) -> None:
    out = tmp_path / "soak.json"
    command = [
        sys.executable, "-m", "benchmarks.soak", "--steps", str(12 * faults), "--limit", str(faults), "--seconds", "1",
        "--generator", "transformers", "--kinds", *kinds, "--patience", "30", "--out", str(out), "--folder", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert sum(kind["times"] for kind in found["faults"].values()) == faults
    assert all(check["ok"] for check in found["checks"])
