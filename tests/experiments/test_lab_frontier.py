"""The lab's frontier: weights between a reasoner and what training made of it, and the grid whose hypotheses stand before its runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from onpolicy.experiments.lab import frontier
from onpolicy.experiments.sweep.grid import cells, read_grid
from onpolicy.run.evaluation_files import evaluation_folder, read_evaluation


def test_weights_between_by_hand() -> None:
    start = {"w": torch.tensor([0.0, 4.0], dtype=torch.bfloat16)}
    found = frontier.between(start, {"w": torch.tensor([2.0, 0.0])}, 0.25)
    assert found["w"].dtype == torch.float32 and found["w"].tolist() == [0.5, 3.0]


@pytest.mark.process
def test_the_ends_are_the_start_and_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {
        "unseen": {"name": "lab", "family": "route-c-2", "split": "test", "problems": 6},
        "sums": {"name": "lab", "family": "sums-4", "split": "test", "problems": 6},
    }
    grid = {
        "config": "lab/headroom", "seeds": [0], "axes": ["objective"], "eval_groups": {"others": ["sums"]},
        "frontier": {"in_domain": "unseen", "out_of_domain": "others"}, "arms": {"unprotected": {}},
        "factors": {"short": {"steps": 3, "eval.every": 3, "eval.sets": sets, "trainer.lr": 3e-3}},
    }  # fmt: skip
    path, output = tmp_path / "grid.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    monkeypatch.setattr(frontier, "GRID", path)
    monkeypatch.setattr(frontier, "SHARES", (0.5,))
    assert frontier.frontier(output, 1) == 0
    written = json.loads((output / "results.json").read_text())
    assert [p["arm"] for p in written["points"]] == ["unprotected", "interpolated_0.5"] and len(written["runs"]) == 2
    assert "<!-- interpolated_0.5 -->" in (output / "frontier.svg").read_text()
    (cell,) = cells(path, output)
    for share, step in ((0.0, 0), (1.0, 3)):
        end = frontier.interpolated(cell, share, output, Console(file=io.StringIO()))
        for name, rows in read_evaluation(cell.folder, step).items():
            again = read_evaluation(end.folder, 3)[name]
            assert [row["completions"] for row in again] == [row["completions"] for row in rows]
    measured = evaluation_folder(output / "interpolated_0.5/short/seed-0", 3) / "unseen.jsonl"
    before = measured.stat().st_mtime_ns
    assert frontier.frontier(output, 1) == 0 and measured.stat().st_mtime_ns == before, "what is measured stays"


def test_the_grid_is_about_one_thing() -> None:
    grid = read_grid(frontier.GRID)
    assert next(iter(grid.arms)) == frontier.UNPROTECTED
    for arm, controls in grid.confirm.items():
        assert "grpo" in controls and any(name.startswith(arm) for name in controls), (
            "rewards alone, and an equal-mass null"
        )
