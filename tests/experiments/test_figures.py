"""The figures of a sweep, frontier and dose-response: by hand, drawn, and in a sweep's own page."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from onpolicy.experiments.report.page import write_report
from onpolicy.experiments.sweep.dose_response import responses
from onpolicy.experiments.sweep.figures import write_figures
from onpolicy.experiments.sweep.frontier import draw_frontier, frontier_points, frontier_table
from onpolicy.experiments.sweep.grid import FRONTIER, Cell, Grid
from tests.experiments.test_report import fake_run

AXES = {"in_domain": "new", "out_of_domain": "others"}
GROUPS = {"others": ["map", "sums"]}
Rates = Mapping[str, Sequence[float]]
REWARDS = [{"name": "right"}, {"name": "logged", "weight": 0.0}, {"name": "bonus", "weight": -2.0}]


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
    assert both.in_domain.difference == 0.625 and both.out_of_domain.difference == pytest.approx(-0.5)
    assert both.in_domain.low < 0.625 < both.in_domain.high
    assert (single.arm, single.step, single.tokens) == ("b", 2, 20.0)
    assert [single.in_domain.difference, single.out_of_domain.difference] == pytest.approx([0.25, -1 / 6])


def test_the_figure_and_the_table(tmp_path: Path) -> None:
    points = frontier_points(runs(tmp_path), GROUPS, AXES)
    draw_frontier(points, AXES, tmp_path / "frontier.svg")
    drawn = (tmp_path / "frontier.svg").read_text()
    assert drawn.count("<svg") == 1 and "<!-- others: accuracy minus reference model -->" in drawn
    draw_frontier(points, AXES, tmp_path / "bar.svg", bar=True)
    shaded = (tmp_path / "bar.svg").read_text()
    assert [text.count('id="FillBetweenPolyCollection') for text in (drawn, shaded)] == [0, 1], "what has to be reached"
    assert "<!-- a -->" in drawn and "<!-- b -->" in drawn and "<!-- c -->" not in drawn, "the legend"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(frontier_table(points))
    said = console.export_text()
    assert "+0.625 (" in said and "-0.500 (" in said


def cells_of(folder: Path) -> list[Cell]:
    return [
        Cell(arm, factor, seed, Path(), (), run, None, {"rewards": REWARDS})  # type: ignore[arg-type]
        for arm, factor, seed, run in runs(folder)
    ]


def test_what_a_sweep_writes(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    grid = Grid(config="", arms={}, eval_groups=GROUPS, frontier=AXES)
    figure = write_figures(cells_of(tmp_path / "runs"), grid, tmp_path, console)
    written = json.loads((tmp_path / "frontier.json").read_text())
    assert written["axes"] == AXES and [p["arm"] for p in written["points"]] == ["a", "b"]
    assert set(written["points"][0]) > {"tokens", *FRONTIER} and not (tmp_path / "dose_response.json").exists()
    write_report([fake_run(tmp_path / "run", rollouts=1, tokens=20)], tmp_path / "report.html", {}, None, figure)
    page = (tmp_path / "report.html").read_text()
    assert figure.startswith("<svg") and f'<div id="figures">{figure}</div>' in page
    assert write_figures([], Grid(config="", arms={}), tmp_path, console) == ""


def test_doses_by_hand(tmp_path: Path) -> None:
    cells = cells_of(tmp_path / "runs")
    assert responses(cells, GROUPS, ["new"]) == [], "no run has logged one"
    for cell, doses in zip(cells, ([0.1, 0.3], [0.6], [0.5]), strict=False):
        rows: list[dict[str, float]] = [
            {"step": i, "credit/dose": dose, "rate": dose} for i, dose in enumerate(doses, start=1)
        ]
        rows[-1] |= {"eval/map/problems": 1, "eval/sums/problems": 3, "eval/map/words": 8, "eval/sums/words": 4}
        (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = ["new", "others", "rate", "eval/others/words", "nothing"]
    both, single = responses(cells, GROUPS, read)
    assert (both.arm, both.seeds) == ("a", 2)
    assert both.dose == pytest.approx(-0.4), "mean of .2 and .6; the weight is below 0"
    assert set(both.read) == {"new", "others", "rate", "eval/others/words"}
    assert both.read["eval/others/words"] == (5.0, 5.0, 5.0), "one problem of 8 words, three of 4"
    # .75 and 1, .375 from a standard error of .125: t(1) = 12.706
    assert both.read["new"] == pytest.approx((0.875, 0.875 - 12.7062 * 0.125, 0.875 + 12.7062 * 0.125), abs=1e-3)
    assert both.read["rate"][0] == pytest.approx(0.45), "the last tenth of two steps is the last one"
    row = {"step": 1, "credit/dose": 0.0, "eval/map/problems": 1, "eval/sums/problems": 3}
    idle = replace(cells[2], factor="0", folder=tmp_path / "idle")
    shutil.copytree(cells[2].folder, idle.folder)
    (idle.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    console = Console(width=200, record=True, file=io.StringIO())
    write_figures([*cells, idle], Grid(config="", arms={}, dose_response=["new"]), tmp_path, console)
    assert "dose_response: the bonus changed no advantage in b 0\n" in console.export_text()
    schedule = {"name": "linear", "initial": -0.5, "final": -0.1, "steps": 9}
    for rewards in ([REWARDS[2], REWARDS[0]], [REWARDS[0], {"name": "bonus", "weight": schedule}]):
        changed = [replace(c, canonical={"correctness": "right", "rewards": rewards}) for c in cells[2:3]]
        assert responses(changed, GROUPS, ["new"])[0].dose == -0.5, "whichever stands first, and with a schedule"
    assert single.read["others"] == pytest.approx((2 / 3, -math.inf, math.inf)), "one seed"
    grid = Grid(config="", arms={}, eval_groups=GROUPS, dose_response=read[:3])
    figure = write_figures(cells, grid, tmp_path, Console(file=io.StringIO()))
    assert "<!-- realised dose -->" in figure and figure.count("<!-- rate -->") == 1
    assert json.loads((tmp_path / "dose_response.json").read_text())["points"][1]["read"]["others"][1:] == [None, None]


def test_a_metric_is_read_over_the_end_of_a_run(tmp_path: Path) -> None:
    """The last tenth of the steps; what was not logged there, e.g. a detector of markers that are gone, is unknown. A cost is the sum."""
    cell = cells_of(tmp_path)[0]
    same = {"credit/dose": 0.1, "rollout/sampled_tokens": 2.0}
    rows = [{"step": i, "rate": i, **same, **({"vacuous": 1.0} if i < 15 else {})} for i in range(21)]
    (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (read,) = responses([cell], GROUPS, ["rate", "vacuous", "tokens/generated"])
    assert {name: value for name, (value, *_) in read.read.items()} == {"rate": 19.5, "tokens/generated": 42.0}
    many = Grid(config="", arms={}, dose_response=["rate", *(f"map/{n}" for n in range(5))])
    assert write_figures([cell], many, tmp_path, Console(file=io.StringIO())).count("<!-- map/") == 5, "in two rows"


def test_the_dose_of_a_bonus_by_token(tmp_path: Path) -> None:
    """The root of squared change over squared advantage, step by step; its sign is that of the mean change."""
    cell = cells_of(tmp_path)[0]
    steps = [
        {"change": -0.1, "squared_change": 0.04, "squared_group": 1.0},  # .2
        {"change": 0.02, "squared_change": 0.09, "squared_group": 0.25},  # .6
        {"change": -9.0, "squared_change": 9.0, "squared_group": 0.0},  # nothing to compare with
    ]
    rows = [{"step": i, **{f"pg/{name}": v for name, v in row.items()}} for i, row in enumerate(steps, start=1)]
    (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert responses([cell], GROUPS, ["new"], "pg")[0].dose == pytest.approx(-0.4)
    assert responses([cell], GROUPS, ["new"], "another") == []
    console = Console(width=200, record=True, file=io.StringIO())
    grid = Grid(config="", arms={}, dose_response=["new"], dose="another")
    assert write_figures([cell], grid, tmp_path, console) == ""
    assert "no arm has another/squared_group in the metrics of all its runs" in console.export_text()
