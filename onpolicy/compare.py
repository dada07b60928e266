"""Arms side by side: what each run came to, and differences from the first arm, problem by problem and seed by seed."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from rich.table import Table

from onpolicy.types import Metrics

RESAMPLES = 2000
BUDGETS = {
    "tokens/generated": "rollout/sampled_tokens",
    "tokens/trained": "rollout/tokens",
}
"""Sums over a run: what an arm cost -> the metric of a step."""


@dataclass(frozen=True)
class Difference:
    """An arm against the first one, under the same cross and on one set."""

    arm: str
    cross: str
    set: str
    seeds: int
    problems: int
    mean: float
    """Share right in the arm, mean over seeds and problems."""
    spread: float
    """Standard deviation of that share over seeds; nan with one."""
    difference: float
    low: float
    high: float
    """95 % bootstrap interval, seeds and problems drawn anew, the same problems in both arms."""


@dataclass(frozen=True)
class Comparison:
    """Everything a sweep has to say."""

    runs: Sequence[dict[str, float | str]]
    """One row a run: arm, cross, seed, and every metric as it was last logged."""
    differences: Sequence[Difference]

    def write(self, folder: Path) -> None:
        """``runs.csv`` and ``comparison.json``."""
        names = list(dict.fromkeys(name for row in self.runs for name in row))
        with (folder / "runs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.runs)
        (folder / "comparison.json").write_text(json.dumps([asdict(d) for d in self.differences], indent=1) + "\n")


def compare(runs: Sequence[tuple[str, str, int, Path]]) -> Comparison:
    """Of finished runs, given as (arm, cross, seed, folder); the first arm is what the others are compared with."""
    rows: list[dict[str, float | str]] = []
    for arm, cross, seed, folder in runs:
        rows.append({"arm": arm, "cross": cross, "seed": float(seed), **last_metrics(folder)})
    arms = list(dict.fromkeys(arm for arm, *_ in runs))
    differences = []
    for cross in dict.fromkeys(c for _, c, *_ in runs):
        table = {arm: {s: right_by_problem(f) for a, c, s, f in runs if (a, c) == (arm, cross)} for arm in arms}
        for arm in arms:
            seeds = [seed for seed in table[arm] if seed in table[arms[0]]]
            for name in sorted({name for seed in seeds for name in table[arm][seed]}):
                both = [(table[arm][s][name], table[arms[0]][s][name]) for s in seeds]
                differences.append(_difference(arm, cross, name, both))
    return Comparison(rows, differences)


def last_metrics(folder: Path) -> Metrics:
    """Every metric of a run as it was last logged, and what the run cost in tokens."""
    found: Metrics = {}
    costs = dict.fromkeys(BUDGETS, 0.0)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found |= row
        for name, metric in BUDGETS.items():
            costs[name] += row.get(metric, 0.0)
    return found | costs


def right_by_problem(folder: Path) -> dict[str, dict[str, float]]:
    """Set -> problem -> share right, in the run's last evaluation."""
    steps = sorted((folder / "eval").glob("step-*"))
    return {
        path.stem: {row["id"]: fmean(row["right"]) for row in map(json.loads, path.read_text().splitlines())}
        for path in (sorted(steps[-1].glob("*.jsonl")) if steps else ())
    }


def _difference(
    arm: str, cross: str, name: str, both: Sequence[tuple[dict[str, float], dict[str, float]]]
) -> Difference:
    problems = sorted(both[0][0])
    own = np.array([[one[p] for p in problems] for one, _ in both])
    gaps = own - np.array([[other[p] for p in problems] for _, other in both])
    draw = np.random.default_rng(0)
    seeds = draw.integers(len(both), size=(RESAMPLES, len(both)))
    chosen = draw.integers(len(problems), size=(RESAMPLES, len(problems)))
    means = [gaps[np.ix_(s, p)].mean() for s, p in zip(seeds, chosen, strict=True)]
    by_seed = own.mean(1)
    return Difference(
        arm=arm, cross=cross, set=name, seeds=len(both), problems=len(problems), mean=float(own.mean()),
        spread=stdev(by_seed) if len(by_seed) > 1 else float("nan"), difference=float(gaps.mean()),
        low=float(np.quantile(means, 0.025)), high=float(np.quantile(means, 0.975)),
    )  # fmt: skip


def comparison_table(comparison: Comparison) -> Table:
    """A row for each arm and cross, a column for each set."""
    found = comparison.differences
    sets = list(dict.fromkeys(d.set for d in found))
    table = Table(
        title="share right; difference from the first arm, 95 % over seeds and problems", title_justify="left"
    )
    for head in ("arm", "", *sets):
        table.add_column(head, justify="left" if head in ("arm", "") else "right")
    for arm, cross in dict.fromkeys((d.arm, d.cross) for d in found):
        cells = {d.set: d for d in found if (d.arm, d.cross) == (arm, cross)}
        table.add_row(arm, cross, *(_cell(cells[name]) if name in cells else "–" for name in sets))
    return table


def _cell(d: Difference) -> str:
    return f"{d.mean:.3f}\n[dim]{d.difference:+.3f} ({d.low:+.3f} to {d.high:+.3f})[/dim]"
