"""Kept runs: restored elsewhere, they are finished runs of the same grid, and comparisons find the same in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from onpolicy.config.resolve import resolve
from onpolicy.experiments.lab.readout import rounded
from onpolicy.experiments.sweep.budgets import RunKey
from onpolicy.experiments.sweep.compare import compare, tokens_by_evaluation
from onpolicy.experiments.sweep.confirmation import confirmations
from onpolicy.experiments.sweep.frontier import frontier_points
from onpolicy.experiments.sweep.grid import Cell, cells, read_grid
from onpolicy.experiments.sweep.kept_runs import keep, restore
from onpolicy.run.evaluation_files import evaluation_folder
from onpolicy.run.run_dir import config_hash, prepare_folder
from onpolicy.utils.errors import ConfigError
from tests.experiments.test_sweep import grid

ROOT = Path(__file__).parents[2]
ARMS: dict[str, Any] = {"plain": {}, "slow": {"trainer.lr": 1e-6}}
PROBLEMS = {"new": ["n1", "n2", "n3"], "map": ["m1", "m2"]}
GROUPS = {"others": ["map"]}


def finished_runs(folder: Path, path: Path, only: Sequence[int] = range(99)) -> list[Cell]:
    """Every run of a grid as if it had been trained for six steps and evaluated at 0, 3 and 6; one verdict is missing."""
    runs = list(cells(path, folder))
    for number, run in enumerate(runs):
        if number not in only:
            continue
        prepare_folder(run.folder, resolve(run.settings))
        (run.folder / "checkpoints/step-000006").mkdir(parents=True)
        for step in (0, 3, 6):
            where = evaluation_folder(run.folder, step)
            where.mkdir(parents=True)
            for name, ids in PROBLEMS.items():
                rows = [
                    {"id": p, "right": [(i + step + number) % 3 == 0, None if p == "n2" else step > number]}
                    for i, p in enumerate(ids)
                ]
                (where / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        steps = [
            {"step": s, "rollout/sampled_tokens": 10 + s + number, "teacher/tokens": 7, "train/loss": 0.5, "group/pass_rate": s / 7}
            for s in range(1, 7)
        ]  # fmt: skip
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"step": 0}, *steps]))
    return runs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return grid(tmp_path, arms=ARMS, axes=["trainer.lr"], confounds=[], seeds=[0, 1], factors={"few": {"steps": 6}})


def restored(path: Path, runs: Sequence[Cell], folder: Path) -> list[Cell]:
    keep(runs, folder / "runs.jsonl")
    assert len(restore(folder / "runs.jsonl", folder / "elsewhere")) == len(runs)
    return list(cells(path, folder / "elsewhere"))


def test_comparisons_find_the_same(tmp_path: Path, path: Path) -> None:
    runs = finished_runs(tmp_path / "out", path)
    again = restored(path, runs, tmp_path)
    assert [c.name for c in again] == [c.name for c in runs] and all(c.finished() for c in again)
    assert not any(c.finished() for c in cells(path, tmp_path / "empty"))
    before, after = (compare([c.run for c in own], GROUPS) for own in (runs, again))
    assert after.plain() == before.plain() and before.differences and before.budgets
    assert [row["config"] for row in after.runs] == [row["config"] for row in before.runs]
    assert after.runs[0]["group/pass_rate"] == pytest.approx(6 / 7, abs=1e-5) and "train/loss" not in after.runs[0]
    assert tokens_by_evaluation(again[1].folder) == {0: 0.0, 3: 39.0, 6: 87.0}, "11 + 1 and so on"


def test_confirmations_find_the_same(tmp_path: Path) -> None:
    path = grid(
        tmp_path, arms=ARMS, axes=["trainer.lr"], confounds=[], seeds=list(range(10)), factors={"few": {"steps": 6}}
    )
    runs = finished_runs(tmp_path / "out", path)
    axes = {"in_domain": "new", "out_of_domain": "others"}
    found = [
        confirmations([c.run for c in own], GROUPS, axes, {"slow": ["plain"]}, "plain")
        for own in (runs, restored(path, runs, tmp_path))
    ]
    assert found[0] == found[1] and found[0]


def test_a_run_that_is_there_stays(tmp_path: Path, path: Path) -> None:
    runs = finished_runs(tmp_path / "out", path)
    keep(runs, tmp_path / "runs.jsonl")
    there = finished_runs(tmp_path / "half", path, only=[2])[2]
    text = (there.folder / "metrics.jsonl").read_text()
    assert there.folder not in restore(tmp_path / "runs.jsonl", tmp_path / "half")
    assert (there.folder / "metrics.jsonl").read_text() == text
    assert restore(tmp_path / "runs.jsonl", tmp_path / "half") == [], "nothing is written twice"
    keep(list(cells(path, tmp_path / "half")), tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "runs.jsonl").read_text(), (
        "kept again without a change"
    )


def test_other_settings_are_refused(tmp_path: Path, path: Path) -> None:
    runs = finished_runs(tmp_path / "out", path)
    file = tmp_path / "runs.jsonl"
    keep(runs, file)
    restore(file, tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        [c.finished() for c in cells(path, tmp_path / "elsewhere", ["trainer.weight_decay=0.5"])]
    file.write_text(file.read_text().replace("1e-06", "1e-05"))
    with pytest.raises(ConfigError, match="slow few seed 0: expected settings with the hash"):
        restore(file, tmp_path / "third")
    with pytest.raises(ConfigError, match="expected a file of kept runs"):
        restore(tmp_path / "none.jsonl", tmp_path / "third")


def test_other_problems_are_refused(tmp_path: Path, path: Path) -> None:
    runs = finished_runs(tmp_path / "out", path)
    other = evaluation_folder(runs[1].folder, 6) / "new.jsonl"
    other.write_text(other.read_text().replace("n3", "n4"))
    with pytest.raises(
        ConfigError, match="slow few seed 0 was evaluated on other problems of 'new' than plain few seed 0"
    ):
        keep(runs, tmp_path / "runs.jsonl")


def test_the_committed_runs_are_the_committed_confirmation(tmp_path: Path) -> None:
    results, grid_ = ROOT / "docs/results/lab", read_grid(ROOT / "configs/lab/confirmation.yaml")
    runs: list[RunKey] = []
    for folder in restore(results / "confirmation_runs.jsonl", tmp_path):
        arm, factor, seed = folder.relative_to(tmp_path).parts
        runs.append((arm, factor, int(seed.removeprefix("seed-")), folder))
    assert {seed for _, _, seed, _ in runs} == set(grid_.seeds) and len(runs) == len(grid_.arms) * len(grid_.seeds)
    found = confirmations(runs, grid_.eval_groups, grid_.frontier, grid_.confirm, next(iter(grid_.arms)))
    committed = json.loads((results / "confirmation.json").read_text())
    assert [rounded(asdict(c)) for c in found] == committed["confirmed"]
    points = [rounded(asdict(p)) for p in frontier_points(runs, grid_.eval_groups, grid_.frontier)]
    key = itemgetter("arm", "step")
    assert sorted(points, key=key) == sorted(committed["points"], key=key)
    assert {config_hash(folder) for *_, folder in runs} == {row["config"] for row in committed["runs"]}
