"""Sweeps: what runs, what does not run again, what is compared, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from onpolicy.__main__ import main
from onpolicy.compare import compare, differences, equal_budgets, interval, right_at
from onpolicy.live import curves, sparkline
from onpolicy.sweep import cells
from tests.runs import write_config


def grid(folder: Path, **changes: Any) -> Path:
    sets = {"sums": {"name": "file", "path": str(folder / "data.jsonl"), "problems": 4}}
    write_config(
        folder, steps=2, checkpoint={"every": 1}, logging={"trackers": ["jsonl"], "tokens_every": 0},
        rewards=[{"name": "tests.test_probes:lucky"}], eval={"every": 2, "sets": sets, "samples": 2, "k": [2]},
    )  # fmt: skip
    whole: dict[str, Any] = {
        "config": "config.yaml", "seeds": [0, 1], "pools": {"both": ["sums"]},
        "arms": {"plain": {}, "slow": {"trainer.lr": 1e-6, "objective[1].weight": 0.5}},
    }  # fmt: skip
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(whole | changes, sort_keys=False))
    return path


def test_a_sweep_runs_what_is_missing_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = grid(tmp_path), tmp_path / "out"
    assert main(["sweep", str(path), "--output", str(output), "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "4 runs, 0 finished" in said and "slow" in said
    finished = {p: p.stat().st_mtime_ns for p in output.glob("*/*/metrics.jsonl")}
    assert len(finished) == 4
    shutil.rmtree(output / "slow/seed-1/checkpoints/step-000002")
    assert main(["sweep", str(path), "--output", str(output)]) == 0
    assert "4 runs, 3 finished" in capsys.readouterr().out
    changed = {p for p in finished if p.stat().st_mtime_ns != finished[p]}
    assert changed == {output / "slow/seed-1/metrics.jsonl"}, "nothing finished is run again"
    assert main(["sweep", str(path), "trainer.lr=0.5", "--output", str(output)]) == 2
    assert "holds a run with other settings (trainer.lr" in capsys.readouterr().err
    rows = list(csv.DictReader((output / "runs.csv").open()))
    assert [(r["arm"], r["seed"]) for r in rows] == [
        ("plain", "0.0"),
        ("slow", "0.0"),
        ("plain", "1.0"),
        ("slow", "1.0"),
    ]
    assert "slow (2 seeds)" in (output / "report.html").read_text()
    assert all(float(r["tokens/generated"]) >= float(r["tokens/trained"]) > 0 for r in rows)
    found = json.loads((output / "comparison.json").read_text())
    assert list(found) == ["differences", "from_start"]
    for rows_ in found.values():
        assert sorted((d["arm"], d["set"], d["seeds"], d["problems"]) for d in rows_) == [
            ("plain", "both", 2, 4),
            ("plain", "sums", 2, 4),
            ("slow", "both", 2, 4),
            ("slow", "sums", 2, 4),
        ]


def fake(folder: Path, right: dict[str, list[bool]], tokens: int = 10, step: int = 2) -> Path:
    (folder / f"eval/step-{step:06d}").mkdir(parents=True)
    rows = "".join(json.dumps({"id": name, "right": r}) + "\n" for name, r in right.items())
    (folder / f"eval/step-{step:06d}/set.jsonl").write_text(rows)
    lines = [{"step": s, "rollout/sampled_tokens": tokens, "rollout/tokens": tokens - 1, "m": s} for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_differences_by_hand(tmp_path: Path) -> None:
    plain = [fake(tmp_path / f"a{s}", {"p": [True, False], "q": [False, False]}) for s in (0, 1)]
    better = [fake(tmp_path / f"b{s}", {"p": [True, True], "q": [s == 1, s == 1]}) for s in (0, 1)]
    runs = [("plain", "x", s, plain[s]) for s in (0, 1)] + [("better", "x", s, better[s]) for s in (0, 1)]
    found = compare(runs)
    own, other = found.differences
    assert own.mean == 0.25 and (own.difference, own.low, own.high, own.spread) == (0.0, 0.0, 0.0, 0.0)
    # seed 0: +.5 and 0; seed 1: +.5 and +1
    assert other.mean == 0.75 and other.difference == 0.5
    # means .25 and .75 over seeds, .5 and .5 over problems: +-12.706 x .25
    assert (other.low, other.high) == pytest.approx((0.5 - 12.7062 * 0.25, 0.5 + 12.7062 * 0.25), abs=1e-3)
    assert other.spread == pytest.approx(0.3535533906)
    assert found.runs[0] | {"arm": 0} == {"arm": 0, "cross": "x", "seed": 0.0, "step": 2, "rollout/sampled_tokens": 10,
        "rollout/tokens": 9, "m": 2, "tokens/generated": 20.0, "tokens/trained": 18.0}  # fmt: skip


def test_from_the_start_and_pooled_by_hand(tmp_path: Path) -> None:
    folder = fake(tmp_path / "a", {"p": [True, True], "q": [True, False]})
    (folder / "eval/step-000002/other.jsonl").write_text('{"id": "p", "right": [false]}\n')
    fake(folder, {"p": [True, False], "q": [False, False]}, step=0)
    (folder / "eval/step-000000/other.jsonl").write_text('{"id": "p", "right": [true]}\n')
    found = {d.set: d for d in compare([("plain", "", 0, folder)], {"all": ["set", "other"]}).from_start}
    assert {name: d.difference for name, d in found.items()} == {"set": 0.5, "other": -1.0, "all": 0.0}
    assert found["all"].problems == 3, "a problem counts in each set it stands in"
    assert compare([("plain", "", 0, fake(tmp_path / "b", {"p": [True]}))]).from_start == []


def test_equal_tokens_by_hand(tmp_path: Path) -> None:
    cheap, dear = fake(tmp_path / "a", {"p": [True]}, tokens=10), fake(tmp_path / "b", {"p": [True]}, tokens=16)
    fake(dear, {"p": [False]}, tokens=16, step=0)
    runs = [("cheap", "", 0, cheap), ("dear", "", 0, dear)]
    budgets = equal_budgets(runs)
    assert budgets == {cheap: 20.0, dear: 20.0}, "the cheaper one ends at 20"
    assert right_at(dear, 20.0) == {"set": {"p": 0.625}}, "20 of the 32 tokens between its two evaluations"
    assert right_at(dear, 99.0) == {"set": {"p": 1.0}} and right_at(dear, 0.0) == {"set": {"p": 0.0}}
    (_, other) = differences(runs, {}, right=lambda folder: right_at(folder, budgets[folder]))
    assert other.difference == -0.375


def test_an_interval_for_other_seeds_and_problems() -> None:
    # one seed: a t-interval over its problems; no spread over problems: one over seeds
    assert interval(np.array([[1.0, 2.0, 3.0]])) == pytest.approx(
        (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4
    )
    assert interval(np.array([[1.0] * 5, [2.0] * 5, [3.0] * 5])) == pytest.approx(
        (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4
    )
    assert interval(np.array([[1.0, 1.0], [1.0, 1.0]])) == (1.0, 1.0)
    draw, hits = np.random.default_rng(0), 0
    for _ in range(400):
        low, high = interval(draw.normal(size=(3, 1)) + draw.normal(size=(1, 40)) + draw.normal(size=(3, 40)))
        hits += low <= 0 <= high
    assert 0.94 <= hits / 400 <= 0.99, "covers the truth as often as it says"


def test_the_reference_arm_is_the_grids_even_if_it_failed(tmp_path: Path) -> None:
    runs = [("better", "", s, fake(tmp_path / f"b{s}", {"p": [True], "q": [s == 1]})) for s in (0, 1)]
    runs.append(("plain", "", 1, fake(tmp_path / "a1", {"p": [False], "q": [False]})))
    found = {d.arm: d for d in compare(runs, reference="plain").differences}
    assert (found["better"].difference, found["better"].seeds) == (1.0, 1), "against the seed that both have"
    assert compare(runs[:2], reference="plain").differences == []


def test_curves_of_runs_that_are_still_running(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {"step": s, "reward/mean": s / 10, "epistemic/A/rate_per_1k": 8.0 - s, "eval/set/avg@4": 0.5} for s in range(9)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 9, "rew')  # being written
    table = curves([("one", folder, 20, "A"), ("not begun", tmp_path / "none", 20, "A")], "runs")
    assert [c.header for c in table.columns] == ["run", "step", "reward", "length", "doubt per 1k", "set"]
    cells = [list(c.cells) for c in table.columns]
    assert cells[1] == ["8/20", "0/20"] and cells[3] == ["", ""]
    assert cells[2] == ["▁▂▃▄▅▅▆▇█ 0.8", ""] and cells[4][0] == "█▇▆▅▅▄▃▂▁ 0"
    assert sparkline(list(range(100)), 0, 99)[-1] == "█" and len(sparkline(list(range(100)), 0, 99)) == 16


def test_every_combination(tmp_path: Path) -> None:
    path = grid(tmp_path, cross={"one": {"data.coverage.problems": 2}, "all": None}, seeds=[3])
    found = list(cells(path, tmp_path / "out", ["steps=1"]))
    assert [(c.arm, c.cross, c.seed) for c in found] == [
        ("plain", "one", 3), ("slow", "one", 3), ("plain", "all", 3), ("slow", "all", 3)
    ]  # fmt: skip
    assert found[1].folder == tmp_path / "out/slow/one/seed-3" and found[1].settings.steps == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"bad": {"trainer.lrr": 1}}}, "arm 'bad': trainer.lrr"),
        ({"arms": {}}, "wanted at least one arm"),
        ({"seeds": "many"}, "seeds"),
        ({"arm": {}}, "arm: unknown key. Did you mean 'arms'?"),
        ({"pools": {"out": ["summs"]}}, "pools.out: got 'summs', wanted sets of eval.sets: sums"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(grid(tmp_path, **changes)), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = grid(tmp_path, seeds=[0], arms={"plain": {}, "gone": {"data.path": "gone.jsonl"}})
    assert main(["sweep", str(path), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert "failed" in said and "gone/seed-0/log.txt" in said
    assert "gone.jsonl" in (tmp_path / "out/gone/seed-0/log.txt").read_text()
    assert [d["arm"] for d in json.loads((tmp_path / "out/comparison.json").read_text())["differences"]] == [
        "plain"
    ] * 2
