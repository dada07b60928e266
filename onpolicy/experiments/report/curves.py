"""The curves of a report: of a long run only as many points as can be told apart, the extremes among them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from onpolicy.types import Metrics

MOST_POINTS = 400
"""Points of a curve; it is drawn some 300 pixels wide."""
DIGITS = 6
BOUNDS = ("low", "high")
Point = list[float]
"""Step and value, and the bounds of an interval where the metric has one."""


class Columns:
    """What a run has logged, metric by metric: 16 bytes a number, so that 10,000 steps of 250 metrics fit into 40 MB."""

    def __init__(self, rows: Iterable[Metrics] = ()) -> None:
        self.last_step: int | None = None
        self._steps: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Takes a row's finite numbers; a step whose gradient was not finite is reported by other metrics."""
        self.last_step = int(row["step"])
        for name, value in numbers(row).items():
            if name not in self._steps:
                self._steps[name], self._values[name] = array("q"), array("d")
            self._steps[name].append(self.last_step)
            self._values[name].append(value)

    def names(self) -> Iterable[str]:
        return self._steps

    def of(self, name: str) -> dict[int, float]:
        """Step -> value."""
        return dict(zip(self._steps.get(name, ()), self._values.get(name, ()), strict=True))


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, without its step."""
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def curves_of(runs: Sequence[Columns]) -> list[dict[str, list[Point]]]:
    """Metric -> points, for each run.

    Of a metric with many steps those are kept at which its mean over the runs is least and greatest in each of equal parts, and the
    first and the last: the same steps for all runs, so that seeds can be compared.
    """
    names = dict.fromkeys(name for run in runs for name in run.names())
    curves: list[dict[str, list[Point]]] = [{} for _ in runs]
    for name in names:
        if _is_bound(name, names):
            continue
        tables = [run.of(name) for run in runs]
        kept = _kept(tables)
        for curve, run, table in zip(curves, runs, tables, strict=True):
            if table:
                bounds = [run.of(end) for bound in BOUNDS if (end := f"{name}/{bound}") in names]
                curve[name] = [_point(step, table[step], bounds) for step in kept if step in table]
    return curves


def _kept(tables: Sequence[dict[int, float]]) -> list[int]:
    values: dict[int, list[float]] = {}
    for table in tables:
        for step, value in table.items():
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    if len(steps) <= MOST_POINTS:
        return steps
    means = {step: fmean(values[step]) for step in steps}
    parts = MOST_POINTS // 2 - 1
    cuts = [len(steps) * i // parts for i in range(parts + 1)]
    ends = {pick(steps[one:other], key=means.__getitem__) for one, other in pairwise(cuts) for pick in (min, max)}
    return sorted({steps[0], steps[-1], *ends})


def _point(step: int, value: float, bounds: Sequence[dict[int, float]]) -> Point:
    ends = [bound[step] for bound in bounds if step in bound]
    return [step, to_digits(value), *map(to_digits, ends if len(ends) == len(BOUNDS) else ())]


def to_digits(value: float) -> float:
    """To the digits that are kept."""
    return value if value.is_integer() else float(f"{value:.{DIGITS}g}")


def _is_bound(name: str, names: Iterable[str]) -> bool:
    metric, _, end = name.rpartition("/")
    return end in BOUNDS and metric in names
