"""The curves of a report: of a long run only as many points as can be told apart, the extremes among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean

from onpolicy.types import Metrics

MOST_POINTS = 400
"""Points of a curve; it is drawn 270 pixels wide."""
DIGITS = 6
BOUNDS = ("low", "high")
Point = list[float]
"""Step and value, and the bounds of an interval where the metric has one."""


def curves_of(runs: Sequence[Sequence[Metrics]]) -> list[dict[str, list[Point]]]:
    """Metric -> points, for each run.

    Of a metric with many steps those are kept at which its mean over the runs is least and greatest in each of equal parts, and the
    first and the last: the same steps for all runs, so that seeds can be compared.

    Args:
        runs: the logged rows of each run, each with its ``step``
    """
    tables = [{int(row["step"]): row for row in rows} for rows in runs]
    names = dict.fromkeys(name for rows in runs for row in rows for name in row)
    shown = [name for name in names if name != "step" and not _is_bound(name, names)]
    kept = {name: _kept(name, tables) for name in shown}
    return [
        {
            name: points
            for name in shown
            if (points := [_point(row, name) for s in kept[name] if name in (row := table.get(s, {}))])
        }
        for table in tables
    ]


def _kept(name: str, tables: Sequence[dict[int, Metrics]]) -> list[int]:
    values: dict[int, list[float]] = {}
    for table in tables:
        for step, row in table.items():
            if name in row:
                values.setdefault(step, []).append(row[name])
    steps = sorted(values)
    if len(steps) <= MOST_POINTS:
        return steps
    means = {step: fmean(values[step]) for step in steps}
    parts = MOST_POINTS // 2 - 1
    cuts = [len(steps) * i // parts for i in range(parts + 1)]
    ends = {pick(steps[one:other], key=means.__getitem__) for one, other in pairwise(cuts) for pick in (min, max)}
    return sorted({steps[0], steps[-1], *ends})


def _point(row: Metrics, name: str) -> Point:
    bounds = [row[f"{name}/{bound}"] for bound in BOUNDS if f"{name}/{bound}" in row]
    return [
        row["step"],
        *(float(f"{value:.{DIGITS}g}") for value in (row[name], *(bounds if len(bounds) == len(BOUNDS) else ()))),
    ]


def _is_bound(name: str, names: Iterable[str]) -> bool:
    metric, _, end = name.rpartition("/")
    return end in BOUNDS and metric in names
