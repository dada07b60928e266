"""What a run says at its end: counts and intervals of its first and last evaluation, its page, and nothing that was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onpolicy.run.closing import change_of_set
from onpolicy.run.evaluation_files import ProblemResult, evaluation_folder, read_results
from onpolicy.utils.stats import change_of_accuracy
from tests.runs import run_here, write_config

EVAL = {"every": 2, "samples_per_problem": 3, "pass_at": [1], "max_tokens": 6}


def a_config(folder: Path) -> Path:
    """Three steps, evaluated before the first and after the second and the third."""
    sets = {
        name: {"name": "file", "path": str(folder / "data.jsonl"), "problems": n}
        for name, n in (("near", 4), ("other", 2))
    }
    return write_config(folder, eval={**EVAL, "sets": sets})


def result(number: int, right: list[bool | None], length: int = 5) -> ProblemResult:
    n = len(right)
    return ProblemResult(str(number), [0.0] * n, right, [None] * n, [length] * n, [False] * n, [""] * n)


def test_it_shows_counts_lengths_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = a_config(tmp_path), tmp_path / "run"
    assert run_here(config, f"run_dir={run}") == 0
    said = capsys.readouterr().out
    end = said[said.index("evaluation, before training") :]
    near, other = (next(line for line in end.splitlines() if f"│ {name} " in line) for name in ("near", "other"))
    for line, name, samples in ((near, "near", 12), (other, "other", 6)):
        first, last = (read_results(evaluation_folder(run, step) / f"{name}.jsonl").values() for step in (0, 3))
        counts = [sum(sum(map(bool, r.right)) for r in results) for results in (first, last)]
        assert f"{counts[0]} → {counts[1]} of {samples}" in line
    assert "step 3" in end and end.index("near") < end.index("other")
    page = run / "report.html"
    assert str(page) in end and "near" in page.read_text()
    assert end.index(str(page)) < end.index("next: ")


def test_a_resumed_run_is_compared_with_its_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = a_config(tmp_path), tmp_path / "run"
    assert run_here(config, f"run_dir={run}", "steps=2") == 0 and run_here(config, f"run_dir={run}") == 0
    assert "evaluation, before training → after step 3" in capsys.readouterr().out


def test_without_an_evaluation_nothing_is_claimed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert run_here(write_config(tmp_path), "steps=1", f"run_dir={run}") == 0
    said = capsys.readouterr().out
    assert "before training" not in said and "accuracy" not in said and (run / "report.html").is_file()


def test_a_page_that_cannot_be_written_costs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "report.html").mkdir(parents=True)  # in the page's place
    assert run_here(write_config(tmp_path), "steps=1", f"run_dir={run}") == 0
    said = capsys.readouterr().out
    assert "could not be written" in said and "next: " in said
    assert json.loads((run / "metrics.jsonl").read_text())["step"] == 1


def test_a_run_without_metrics_on_disk_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, logging={"trackers": []})
    assert run_here(config, "steps=1", f"run_dir={tmp_path / 'run'}") == 0
    said = capsys.readouterr().out
    assert "could not be written" in said and "next: " in said


def test_the_interval_by_hand() -> None:
    """All of 40 correct, then 20: Wilson's bounds are 40/(40 + z²) and (20 + z²/2 ± z √(10 + z²/4)) / (40 + z²)."""
    everything, half = [[True] * 10] * 4, [[True] * 5 + [False] * 5] * 4
    found = change_of_accuracy(everything, half)
    z2 = 1.959964**2
    wilson_low, half_width = 40 / (40 + z2), 1.959964 * (10 + z2 / 4) ** 0.5 / (40 + z2)
    assert found.mean == -0.5
    assert found.low == pytest.approx(-0.5 - half_width, abs=1e-6)
    assert found.high == pytest.approx(-0.5 + (half_width**2 + (1 - wilson_low) ** 2) ** 0.5, abs=1e-6)


def test_problems_that_differ_widen_the_interval() -> None:
    """Two problems lost whole and two kept: the t interval over four differences is (-.5 ± 3.182 · .5774 / 2)."""
    first, last = [[True] * 50] * 4, [[True] * 50] * 2 + [[False] * 50] * 2
    found = change_of_accuracy(first, last)
    assert (
        found.mean == -0.5 and found.low == -1.0 and found.high == pytest.approx(-0.5 + 3.18245 * 0.57735 / 2, abs=1e-4)
    )


def test_samples_that_are_all_correct_twice_prove_little() -> None:
    found = change_of_accuracy([[True] * 4] * 2, [[True] * 4] * 2)
    assert found.mean == 0 and found.low < -0.3 and found.high > 0.3


def test_what_was_not_graded_is_left_out() -> None:
    before = {"1": result(1, [True, None]), "2": result(2, [None, None]), "3": result(3, [True, True], length=9)}
    after = {"1": result(1, [False, True]), "2": result(2, [True, True]), "4": result(4, [True, True])}
    found = change_of_set("s", before, after, None)
    assert found is not None and found.samples == (1, 2) and found.correct == (1, 1) and found.length == (5, 5)
    assert change_of_set("s", {"1": result(1, [None])}, {"1": result(1, [True])}, None) is None
