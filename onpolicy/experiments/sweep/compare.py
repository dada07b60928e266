"""Arms side by side: what each run came to, and differences from the first arm, problem by problem and seed by seed."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from rich.table import Table

from onpolicy.experiments.sweep.budgets import BUDGETS, Budget, Run, budgets, costs
from onpolicy.run.evaluation_files import evaluated_steps, read_evaluation
from onpolicy.run.run_dir import logged
from onpolicy.types import Metrics
from onpolicy.utils.terminal import plain

Right = Mapping[str, Mapping[str, float]]
"""Set -> problem -> share right."""


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
    """95 % interval for other seeds and other problems of the kind, the same problems in both arms (``interval``)."""


@dataclass(frozen=True)
class Confound:
    """A setting in which an arm differs from the first one beside the axes of the grid."""

    arm: str
    cross: str
    key: str
    value: str
    reference: str
    """The first arm's."""


@dataclass(frozen=True)
class Comparison:
    """Everything a sweep has to say."""

    runs: Sequence[dict[str, float | str]]
    """One row a run: arm, cross, seed, and every metric as it was last logged."""
    differences: Sequence[Difference]
    from_start: Sequence[Difference]
    """Of every arm, the first one too, against the reference model as the same run evaluated it at step 0."""
    budgets: Sequence[Budget] = ()
    equal_tokens: Mapping[str, float] = field(default_factory=dict)
    """Cross -> tokens that its cheapest run sampled in all."""
    at_equal_tokens: Sequence[Difference] = ()
    """As ``differences``, when each run had sampled so many."""
    reference: str = ""
    """The first arm."""
    axes: Sequence[str] = ()
    """What the arms sweep, where the grid says so."""
    confounds: Sequence[Confound] = ()

    def plain(self) -> dict[str, Any]:
        """All but the runs, as JSON has it; what is no number is null."""
        return {
            "reference": self.reference,
            "axes": list(self.axes),
            "confounds": [asdict(c) for c in self.confounds],
            "differences": [_finite(d) for d in self.differences],
            "budgets": [asdict(b) for b in self.budgets],
            "equal_tokens": dict(self.equal_tokens),
            "at_equal_tokens": [_finite(d) for d in self.at_equal_tokens],
            "from_start": [_finite(d) for d in self.from_start],
        }

    def write(self, folder: Path) -> None:
        """``runs.csv`` and ``comparison.json``."""
        names = list(dict.fromkeys(name for row in self.runs for name in row))
        with (folder / "runs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.runs)
        (folder / "comparison.json").write_text(json.dumps(self.plain(), indent=1) + "\n")


def _finite(difference: Difference) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(difference).items()}


def compare(
    runs: Sequence[Run],
    pools: Mapping[str, Sequence[str]] | None = None,
    reference: str | None = None,
    axes: Sequence[str] = (),
    confounds: Sequence[Confound] = (),
) -> Comparison:
    """Of finished runs: everything; arguments as of ``differences``, and what the grid says of its arms."""
    pools, reference = pools or {}, reference or runs[0][0]
    rows: list[dict[str, float | str]] = [
        {"arm": arm, "cross": cross, "seed": float(seed), **last_metrics(folder)} for arm, cross, seed, folder in runs
    ]
    tokens, at_equal_tokens = equally_dear(runs, pools, reference)
    return Comparison(
        runs=rows, differences=differences(runs, pools, reference), from_start=against_reference(runs, pools),
        budgets=budgets(runs, reference), equal_tokens=tokens, at_equal_tokens=at_equal_tokens,
        reference=reference, axes=axes, confounds=confounds,
    )  # fmt: skip


def differences(
    runs: Sequence[Run],
    pools: Mapping[str, Sequence[str]],
    reference: str | None = None,
    right: Callable[[Path], Right] | None = None,
) -> list[Difference]:
    """Arm by arm and seed by seed; seeds that one of two arms lacks are left out of their comparison.

    Args:
        runs: finished ones
        pools: name -> sets that are also compared as one, each problem counting alike
        reference: the arm that the others are compared with; None: the first
        right: folder -> set -> problem -> share right; None: in the last evaluation
    """
    read, reference = right or right_by_problem, reference or runs[0][0]
    arms = dict.fromkeys(arm for arm, *_ in runs)
    found = []
    for cross in dict.fromkeys(c for _, c, *_ in runs):
        table = {arm: {s: pooled(read(f), pools) for a, c, s, f in runs if (a, c) == (arm, cross)} for arm in arms}
        for arm in arms:
            seeds = [seed for seed in table[arm] if seed in table.get(reference, {})]
            if seeds:
                pairs = [(table[arm][s], table[reference][s]) for s in seeds]
                found += [_difference(arm, cross, name, both) for name, both in _in_common(pairs).items()]
    return found


def _in_common(
    pairs: Sequence[tuple[Right, Right]],
) -> dict[str, list[tuple[Mapping[str, float], Mapping[str, float]]]]:
    """Set -> each pair's answers to the problems that are in all of them; no set without one."""
    names = set.intersection(*(set(side) for pair in pairs for side in pair))
    found: dict[str, list[tuple[Mapping[str, float], Mapping[str, float]]]] = {}
    for name in sorted(names):
        problems = set.intersection(*(set(side[name]) for pair in pairs for side in pair))
        if problems:
            kept = [[{p: side[name][p] for p in problems} for side in pair] for pair in pairs]
            found[name] = [(one, other) for one, other in kept]
    return found


def against_reference(runs: Sequence[Run], pools: Mapping[str, Sequence[str]]) -> list[Difference]:
    """Each arm's last evaluation less its evaluation at step 0; nothing of runs without one."""
    pairs: dict[tuple[str, str], list[tuple[Right, Right]]] = {}
    for arm, cross, _, folder in runs:
        last, first = (pooled(right_by_problem(folder, step), pools) for step in (None, 0))
        if first:
            pairs.setdefault((arm, cross), []).append((last, first))
    return [
        _difference(arm, cross, name, both)
        for (arm, cross), found in pairs.items()
        for name, both in _in_common(found).items()
    ]


def last_metrics(folder: Path) -> Metrics:
    """Every metric of a run as it was last logged, and what the run cost in tokens."""
    found: Metrics = {}
    for row in logged(folder):
        found |= row
    return found | costs(folder)


def right_by_problem(folder: Path, step: int | None = None) -> Right:
    """Set -> problem -> share right, in the run's evaluation at a step; None: in its last one."""
    return {
        name: {row["id"]: fmean(row["right"]) for row in rows} for name, rows in read_evaluation(folder, step).items()
    }


def pooled(right: Right, pools: Mapping[str, Sequence[str]]) -> dict[str, Mapping[str, float]]:
    """The sets, and each pool as one more."""
    together = {
        pool: {f"{name}/{problem}": share for name in names for problem, share in right[name].items()}
        for pool, names in pools.items()
        if all(name in right for name in names)
    }
    return {**right, **together}


def equally_dear(
    runs: Sequence[Run], pools: Mapping[str, Sequence[str]], reference: str
) -> tuple[dict[str, float], list[Difference]]:
    """Cross -> tokens that its cheapest run sampled, and ``differences`` when each run had sampled so many. Runs that were not
    evaluated until then are left out."""
    evaluated = {folder: spent for *_, folder in runs if (spent := _tokens_by_evaluation(folder))}
    tokens = equal_budgets([run for run in runs if run[-1] in evaluated])
    known = [run for run in runs if run[-1] in tokens and min(evaluated[run[-1]].values()) <= tokens[run[-1]]]
    by_cross = {cross: tokens[folder] for _, cross, _, folder in runs if folder in tokens}
    return by_cross, differences(known, pools, reference, lambda folder: right_at(folder, tokens[folder]))


def equal_budgets(runs: Sequence[Run]) -> dict[Path, float]:
    """Folder -> tokens: what the cheapest run of the same cross sampled in all."""
    spent = {folder: max(_tokens_by_evaluation(folder).values()) for *_, folder in runs}
    cheapest = {cross: min(spent[f] for _, c, _, f in runs if c == cross) for _, cross, *_ in runs}
    return {folder: cheapest[cross] for _, cross, _, folder in runs}


def right_at(folder: Path, tokens: float) -> Right:
    """As ``right_by_problem`` when so many tokens had been sampled: between two evaluations by a straight line."""
    spent = sorted(_tokens_by_evaluation(folder).items())
    after = next((i for i, (_, total) in enumerate(spent) if total >= tokens), len(spent) - 1)
    (step, total), (before, earlier) = spent[after], spent[max(after - 1, 0)]
    share = 1.0 if total == earlier else min((tokens - earlier) / (total - earlier), 1.0)
    late, early = right_by_problem(folder, step), right_by_problem(folder, before)
    return {
        name: {problem: share * value + (1.0 - share) * early[name][problem] for problem, value in found.items()}
        for name, found in late.items()
    }


def _tokens_by_evaluation(folder: Path) -> dict[int, float]:
    evaluated = evaluated_steps(folder)
    total, found = 0.0, {step: 0.0 for step in evaluated if step == 0}
    for row in logged(folder):
        total += sum(row.get(metric, 0.0) for metric in BUDGETS["tokens/generated"])
        if int(row["step"]) in evaluated:
            found[int(row["step"])] = total
    return found


def _difference(
    arm: str, cross: str, name: str, both: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]
) -> Difference:
    problems = sorted(both[0][0])
    own = np.array([[one[p] for p in problems] for one, _ in both])
    gaps = own - np.array([[other[p] for p in problems] for _, other in both])
    low, high = interval(gaps)
    by_seed = own.mean(1)
    return Difference(
        arm=arm, cross=cross, set=name, seeds=len(both), problems=len(problems), mean=float(own.mean()),
        spread=stdev(by_seed) if len(by_seed) > 1 else float("nan"), difference=float(gaps.mean()), low=low, high=high,
    )  # fmt: skip


def interval(gaps: np.ndarray) -> tuple[float, float]:
    """95 % for the mean of ``[seeds, problems]`` where both are samples: mean -+ sqrt(t_s^2 v_s + t_p^2 v_p).

    v_s and v_p are the variances of the row and of the column means over their numbers, each with the t of its own degrees of freedom;
    both contain what neither explains, so it errs on the wide side. A bootstrap over three seeds would be too narrow by far. With one
    seed it speaks of other problems alone, with one problem of other seeds; of one of each nothing can be said (nan).
    """
    mean = float(gaps.mean())
    if gaps.size == 1:
        return float("nan"), float("nan")
    half = (_part(gaps.mean(1)) + _part(gaps.mean(0))) ** 0.5
    return mean - half, mean + half


def _part(means: np.ndarray) -> float:
    """t^2 times the variance of the means over their number; 0 of a single one."""
    from scipy.stats import t

    n = len(means)
    return float(t.ppf(0.975, n - 1)) ** 2 * float(means.var(ddof=1)) / n if n > 1 else 0.0


def differences_table(found: Sequence[Difference], when: str = "") -> Table:
    """A row for each arm and cross, a column for each set.

    Args:
        found: what it shows
        when: in the title, of what state of the runs it speaks
    """
    sets = list(dict.fromkeys(d.set for d in found))
    table = Table(
        title=f"share right{when}; difference from the first arm, 95 % over seeds and problems", title_justify="left"
    )
    crossed = any(d.cross for d in found)
    for head in ("arm", *([""] if crossed else []), *sets):
        table.add_column(plain(head), justify="left" if head in ("arm", "") else "right", overflow="fold")
    for arm, cross in dict.fromkeys((d.arm, d.cross) for d in found):
        cells = {d.set: d for d in found if (d.arm, d.cross) == (arm, cross)}
        table.add_row(
            plain(arm),
            *([plain(cross)] if crossed else []),
            *(_cell(cells[name]) if name in cells else "–" for name in sets),
        )
    return table


def _cell(d: Difference) -> str:
    known = "" if math.isnan(d.low) else f" ({d.low:+.3f} to {d.high:+.3f})"
    return f"{d.mean:.3f}\n[dim]{d.difference:+.3f}{known}[/dim]"
