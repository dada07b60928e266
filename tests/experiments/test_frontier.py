"""The frontier of a sweep: by hand, as a figure, and in a sweep's own page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from onpolicy.experiments.report.page import write_report
from onpolicy.experiments.sweep.frontier import draw_frontier, frontier_points, frontier_table
from onpolicy.experiments.sweep.grid import FRONTIER, Grid
from onpolicy.experiments.sweep.sweep import write_frontier
from tests.experiments.test_report import fake_run

AXES = {"in_domain": "new", "out_of_domain": "others"}
GROUPS = {"others": ["map", "sums"]}
Rates = Mapping[str, Sequence[float]]


def evaluated(folder: Path, by_step: Mapping[int, Rates], tokens: int = 10) -> Path:
    """A run whose evaluation at each step has these pass rates, by set, a value a problem."""
    folder.mkdir(parents=True)
    for step, sets in by_step.items():
        (folder / f"eval/step-{step:06d}").mkdir(parents=True)
        for name, rates in sets.items():
            rows = [json.dumps({"id": str(i), "right": [rate]}) + "\n" for i, rate in enumerate(rates)]
            (folder / f"eval/step-{step:06d}/{name}.jsonl").write_text("".join(rows))
    lines = [{"step": s, "rollout/sampled_tokens": tokens} for s in range(1, max(by_step) + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def runs(folder: Path) -> list[tuple[str, str, int, Path]]:
    start = {"new": [0.0, 0.5], "map": [1.0], "sums": [1.0, 0.5]}
    middle, end = (
        {"new": [0.5, 0.5], "map": [0.5], "sums": [1.0, 0.5]},
        {"new": [1.0, 0.5], "map": [0.0], "sums": [1.0, 0.0]},
    )
    other = {"new": [1.0, 1.0], "map": [0.5], "sums": [0.5, 0.0]}
    return [
        ("a", "8", 0, evaluated(folder / "a0", {0: start, 2: middle, 4: end}, 10)),
        ("a", "8", 1, evaluated(folder / "a1", {0: start, 4: other}, 30)),
        ("b", "8", 0, evaluated(folder / "b0", {0: start, 2: middle})),
        ("c", "8", 0, evaluated(folder / "c0", {4: end})),
    ]  # fmt: skip


def test_points_by_hand(tmp_path: Path) -> None:
    both, single = frontier_points(runs(tmp_path), GROUPS, AXES)
    assert (both.arm, both.step, both.seeds, both.tokens) == ("a", 4, 2, 80.0), (
        "the step at which both runs were evaluated"
    )
    # new: +1 and 0, +1 and +.5; others: -1, 0, -.5 and -.5, -.5, -.5
    assert both.in_domain.mean == 0.625 and both.out_of_domain.mean == pytest.approx(-0.5)
    assert both.in_domain.low < 0.625 < both.in_domain.high
    assert (single.arm, single.step, single.tokens) == ("b", 2, 20.0)
    assert (single.in_domain.mean, single.out_of_domain.mean) == (0.25, pytest.approx(-1 / 6))


def test_the_figure_and_the_table(tmp_path: Path) -> None:
    points = frontier_points(runs(tmp_path), GROUPS, AXES)
    draw_frontier(points, AXES, tmp_path / "frontier.svg")
    drawn = (tmp_path / "frontier.svg").read_text()
    assert drawn.count("<svg") == 1 and "<!-- others: accuracy minus reference model -->" in drawn
    assert "<!-- a -->" in drawn and "<!-- b -->" in drawn and "<!-- c -->" not in drawn, "the legend"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(frontier_table(points, AXES))
    said = console.export_text()
    assert "+0.625 (" in said and "-0.500 (" in said


def test_what_a_sweep_writes(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    grid = Grid(config="", arms={}, eval_groups=GROUPS, frontier=AXES)
    figure = write_frontier(runs(tmp_path / "runs"), grid, tmp_path, console)
    written = json.loads((tmp_path / "frontier.json").read_text())
    assert written["axes"] == AXES and [p["arm"] for p in written["points"]] == ["a", "b"]
    assert set(written["points"][0]) > {"tokens", *FRONTIER}
    write_report([fake_run(tmp_path / "run", rollouts=1, tokens=20)], tmp_path / "report.html", {}, None, figure)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") - page.count('"<svg') >= 1 and "<!-- others: accuracy minus reference model -->" in page
    assert write_frontier([], Grid(config="", arms={}), tmp_path, console) == ""
