"""The paper's findings where there is something to learn: claims by hand, and the committed claims from the committed runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onpolicy.experiments.lab import headroom
from onpolicy.experiments.lab.claims import LENGTH, PASS_RATE
from onpolicy.experiments.lab.readout import rounded
from onpolicy.experiments.sweep.grid import cells
from onpolicy.experiments.sweep.kept_runs import restore
from tests.experiments.test_sweep import grid

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results/lab"


def test_more_than_rewards_on_the_problems_trained_on(tmp_path: Path) -> None:
    """Gaps of .4 and .2 at the last step: mean .3, standard error .1, t(1) = 12.706."""
    sizes = {size: {"steps": 6, "eval.every": 3} for size in ("8", "512")}
    path = grid(
        tmp_path,
        arms={"distilled": {}, "grpo": {"trainer.lr": 1e-6}},
        axes=["trainer.lr"],
        confounds=[],
        seeds=[0, 1],
        factors=sizes,
    )
    runs = list(cells(path, tmp_path / "out"))
    last = {("distilled", 0): 0.9, ("grpo", 0): 0.5, ("distilled", 1): 0.8, ("grpo", 1): 0.6}
    for run in runs:
        run.folder.mkdir(parents=True)
        rows = [
            {"step": step, PASS_RATE: last[run.arm, run.seed] * step / 6, LENGTH: 10 - step - run.seed}
            for step in (1, 3, 6)
        ]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {claim.text: claim for claim in headroom.trained_against_grpo(runs)}
    assert len(found) == 4, "two numbers of problems at two steps"
    few, many = (
        found[f"distilled minus GRPO, |D| = {size}: accuracy on the problems trained on, step 6"]
        for size in ("8", "512")
    )
    assert few.value == pytest.approx(0.3) and few.high - few.value == pytest.approx(1.2706, abs=1e-3)
    assert few.positive and not many.positive and few.verdict == "open"
    half = found["distilled minus GRPO, |D| = 8: accuracy on the problems trained on, step 3"]
    assert half.value == pytest.approx(0.15)
    row = next(row for row in headroom.trained_on(runs) if (row["arm"], row["factor"], row["step"]) == ("grpo", "8", 3))
    assert row["accuracy"] == pytest.approx(0.275) and row["tokens"] == 6.5 and row["seeds"] == 2
    alone = [run for run in runs if run.arm == "distilled"]
    assert list(headroom.trained_against_grpo(alone)) == [], "nothing to compare with yet"


@pytest.mark.nightly
def test_the_committed_runs_are_the_committed_claims(tmp_path: Path) -> None:
    committed = json.loads((RESULTS / "headroom.json").read_text())
    assert len(restore(RESULTS / "headroom_runs.jsonl", tmp_path)) == len(committed["runs"]) > 0
    headroom.write_headroom(tmp_path)
    found = json.loads((tmp_path / "headroom.json").read_text())
    assert {**found, "versions": None} == {**committed, "versions": None}


def test_what_is_not_finite_is_null_in_a_kept_file() -> None:
    assert rounded({"spread": float("nan"), "low": (float("-inf"), 1.234567)}) == {
        "spread": None,
        "low": [None, 1.2346],
    }
