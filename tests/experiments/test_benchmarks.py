"""The benchmarks: 1. our workers keep to the protocol and do the work they are given; 2. ratios by hand; 3. what the command says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import stored, table
from benchmarks.peers.environment import ROOT
from benchmarks.rows import ROWS, Line
from benchmarks.workers import WorkerError, alternate, ratios
from tests.runs import write_config
from tests.tiny import tiny_model_dir


def work(folder: Path, **changes: Any) -> dict[str, Any]:
    problems = [{"question": f"{i} + 1?", "solution": f"{i} + 1 = {i + 1}"} for i in range(4)]
    return {
        "what": "update", "model": str(folder), "problems": problems, "group": 2, "prompts_per_step": 2, "max_tokens": 5,
        "completions": [[[7, 8, 9, 10, 11]] * 2] * 4, "micro_batch": 2, "threads": 1, "lr": 1e-3,
    } | changes  # fmt: skip


@pytest.mark.process
def test_a_step_at_a_time_on_the_given_completions(tmp_path: Path) -> None:
    spec = work(tiny_model_dir(tmp_path / "model"))
    found = alternate({"one": ("step_worker.py", spec), "two": ("step_worker.py", spec)}, repeats=2)
    for one in found.values():
        assert len(one.seconds) == 2 and len(one.losses) == 3 and one.tokens == 2 * 2 * 5
        assert {"score", "update"} <= set(one.phases[0]) and sum(one.phases[0].values()) <= one.seconds[0] * 1.05
        assert one.memory_mib > 0 and one.losses[0] > 0
    assert found["one"].losses == found["two"].losses, "the same work"


@pytest.mark.process
def test_sampling_at_a_time(tmp_path: Path) -> None:
    """The prompts of a step, and rollouts as long as they may be."""
    spec = {"config": str(write_config(tmp_path)), "generator": "transformers", "threads": 1}
    found = alternate({"one": ("generator_worker.py", spec)}, repeats=2)["one"]
    assert found.tokens == 2 * 3 * 8 and len(found.seconds) == 2


@pytest.mark.process
def test_the_loss_at_a_time() -> None:
    spec = {"hidden": 16, "vocabulary": 500, "tokens": 40, "threads": 1}
    found = alternate(
        {"full": ("loss_worker.py", spec), "top": ("loss_worker.py", spec | {"support": "top20"})}, repeats=1
    )
    assert 0 < found["top"].losses[0] <= found["full"].losses[0] < 0.7


@pytest.mark.process
def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"step_worker\.py: .*nowhere"):
        alternate({"one": ("step_worker.py", work(tmp_path / "nowhere"))}, repeats=1)


def test_ratios_by_hand() -> None:
    assert ratios([2.0, 3.0, 8.0], [1.0, 2.0, 2.0]) == (2.0, 1.5, 4.0)


def test_the_published_table_is_there_and_says_what_was_missed() -> None:
    lines = [line for row in ROWS for line in stored(ROOT / "docs" / "results" / "benchmarks", row)]
    assert {"whole step", "scoring + update", "memory of the loss"} <= {
        line.what.split(",")[0].split(" /")[0] for line in lines
    }
    assert table([*lines, Line("none", (1.0, 1.0, 1.0), ">= 2", False)]).row_count == len(lines) + 1


@pytest.mark.process
def test_the_command() -> None:
    wrong = subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", "speed"], cwd=ROOT, capture_output=True, text=True
    )
    assert wrong.returncode == 2 and "no row 'speed'; there are step, update, loss" in wrong.stderr
