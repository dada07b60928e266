"""Compares arms: every run's last metrics, and differences from the first arm, paired by problem and seed."""

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

from onpolicy.experiments.sweep.budgets import BUDGETS, Budget, RunKey, arm_table, budgets, costs
from onpolicy.run.evaluation_files import evaluated_steps, read_evaluation
from onpolicy.run.run_dir import config_hash, logged
from onpolicy.types import Metrics
from onpolicy.utils.json_lines import finite
from onpolicy.utils.stats import detectable_difference, two_way_t_ci
from onpolicy.utils.tables import with_note

RUNS = "runs.csv"
"""A row for each run that is compared."""
PassRatesBySet = Mapping[str, Mapping[str, float]]
"""Set -> problem -> pass rate."""


@dataclass(frozen=True)
class Difference:
    """An arm minus the first one, under the same factor and on one set."""

    arm: str
    factor: str
    set: str
    seeds: int
    problems: int
    mean: float
    """Accuracy of the arm, mean over seeds and problems."""
    spread: float
    """Standard deviation of the accuracy over seeds; nan with one."""
    difference: float
    low: float
    high: float
    """95 % t interval over seeds and problems, the same problems in both arms (``two_way_t_ci``)."""
    detectable: float
    """The difference that so many seeds and problems find in 80 % of repetitions (``detectable_difference``)."""


@dataclass(frozen=True)
class Confound:
    """A setting in which an arm differs from the first one besides the axes of the grid."""

    arm: str
    factor: str
    key: str
    value: str
    reference: str
    """The first arm's."""


@dataclass(frozen=True)
class SweepComparison:
    """Everything that a sweep compares."""

    runs: Sequence[dict[str, float | str]]
    """One row per run: arm, factor, seed, the hash of its config, and every metric as it was last logged."""
    differences: Sequence[Difference]
    from_start: Sequence[Difference]
    """Every arm, the first one too, minus the reference model, as the same run evaluated it at step 0."""
    budgets: Sequence[Budget] = ()
    equal_tokens: Mapping[str, float] = field(default_factory=dict)
    """Cross -> tokens that its cheapest run sampled in all."""
    at_equal_tokens: Sequence[Difference] = ()
    """Like ``differences``, when each run had sampled that many."""
    reference: str = ""
    """The first arm."""
    axes: Sequence[str] = ()
    """The keys that the arms sweep, where the grid names them."""
    confounds: Sequence[Confound] = ()

    @property
    def hashes(self) -> list[dict[str, float | str]]:
        """The rows of ``runs`` without the metrics."""
        return [{name: row[name] for name in ("arm", "factor", "seed", "config")} for row in self.runs]

    def plain(self) -> dict[str, Any]:
        """Everything except the runs, ready for JSON; numbers that are not finite are null."""
        return {
            "reference": self.reference,
            "axes": list(self.axes),
            "confounds": [asdict(c) for c in self.confounds],
            "differences": [finite(asdict(d)) for d in self.differences],
            "budgets": [asdict(b) for b in self.budgets],
            "equal_tokens": dict(self.equal_tokens),
            "at_equal_tokens": [finite(asdict(d)) for d in self.at_equal_tokens],
            "from_start": [finite(asdict(d)) for d in self.from_start],
        }

    def write(self, folder: Path) -> None:
        """``runs.csv`` and ``comparison.json``."""
        names = list(dict.fromkeys(name for row in self.runs for name in row))
        with (folder / RUNS).open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.runs)
        (folder / "comparison.json").write_text(json.dumps(self.plain(), indent=1) + "\n")


def compare(
    runs: Sequence[RunKey],
    eval_groups: Mapping[str, Sequence[str]] | None = None,
    reference: str | None = None,
    axes: Sequence[str] = (),
    confounds: Sequence[Confound] = (),
) -> SweepComparison:
    """Compares finished runs; arguments as of ``differences``, and the grid's axes and confounds."""
    eval_groups, reference = eval_groups or {}, reference or runs[0][0]
    rows: list[dict[str, float | str]] = [
        {"arm": arm, "factor": factor, "seed": float(seed), "config": config_hash(folder), **last_metrics(folder)}
        for arm, factor, seed, folder in runs
    ]
    tokens, at_equal_tokens = at_equal_tokens_of(runs, eval_groups, reference)
    return SweepComparison(
        runs=rows, differences=differences(runs, eval_groups, reference), from_start=against_reference(runs, eval_groups),
        budgets=budgets(runs, reference), equal_tokens=tokens, at_equal_tokens=at_equal_tokens,
        reference=reference, axes=axes, confounds=confounds,
    )  # fmt: skip


def differences(
    runs: Sequence[RunKey],
    eval_groups: Mapping[str, Sequence[str]],
    reference: str | None = None,
    read: Callable[[Path], PassRatesBySet] | None = None,
) -> list[Difference]:
    """Each arm minus the reference arm, paired by seed; seeds that one of the two lacks are left out.

    Args:
        runs: finished runs
        eval_groups: name -> sets that are also compared as one, each problem counting alike
        reference: the arm that the others are compared with; None: the first
        read: folder -> pass rates; None: those of the last evaluation
    """
    read, reference = read or pass_rates_by_problem, reference or runs[0][0]
    arms = dict.fromkeys(arm for arm, *_ in runs)
    found = []
    for factor in dict.fromkeys(c for _, c, *_ in runs):
        table = {
            arm: {s: with_eval_groups(read(f), eval_groups) for a, c, s, f in runs if (a, c) == (arm, factor)}
            for arm in arms
        }
        for arm in arms:
            seeds = [seed for seed in table[arm] if seed in table.get(reference, {})]
            if seeds:
                pairs = [(table[arm][s], table[reference][s]) for s in seeds]
                found += [_difference(arm, factor, name, both) for name, both in _in_common(pairs).items()]
    return found


def _in_common(
    pairs: Sequence[tuple[PassRatesBySet, PassRatesBySet]],
) -> dict[str, list[tuple[Mapping[str, float], Mapping[str, float]]]]:
    """Set -> each pair's pass rates on the problems that all of them have; sets without a common problem are left out."""
    names = set.intersection(*(set(side) for pair in pairs for side in pair))
    found: dict[str, list[tuple[Mapping[str, float], Mapping[str, float]]]] = {}
    for name in sorted(names):
        problems = set.intersection(*(set(side[name]) for pair in pairs for side in pair))
        if problems:
            kept = [[{p: side[name][p] for p in problems} for side in pair] for pair in pairs]
            found[name] = [(one, other) for one, other in kept]
    return found


def against_reference(
    runs: Sequence[RunKey], eval_groups: Mapping[str, Sequence[str]], step: int | None = None
) -> list[Difference]:
    """Each arm's evaluation at a step minus its evaluation at step 0; runs without one at step 0 are left out.

    Args:
        runs: finished runs
        eval_groups: name -> sets that are also compared as one
        step: at which all of them were evaluated; None: the last evaluation of each
    """
    pairs: dict[tuple[str, str], list[tuple[PassRatesBySet, PassRatesBySet]]] = {}
    for arm, factor, _, folder in runs:
        last, first = (with_eval_groups(pass_rates_by_problem(folder, at), eval_groups) for at in (step, 0))
        if first:
            pairs.setdefault((arm, factor), []).append((last, first))
    return [
        _difference(arm, factor, name, both)
        for (arm, factor), found in pairs.items()
        for name, both in _in_common(found).items()
    ]


def last_metrics(folder: Path) -> Metrics:
    """Every metric of a run as it was last logged, and its cost in tokens."""
    found: Metrics = {}
    for row in logged(folder):
        found |= row
    return found | costs(folder)


def pooled_metrics(metrics: Mapping[str, Any], eval_groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The metrics, and for each group of sets that were evaluated their means weighted by problems: ``eval/<group>/...``."""
    found = dict(metrics)
    for group, names in eval_groups.items():
        if any(f"eval/{name}/problems" not in metrics for name in names):
            continue
        weights = {name: metrics[f"eval/{name}/problems"] for name in names}
        for what in (m.removeprefix(f"eval/{names[0]}/") for m in metrics if m.startswith(f"eval/{names[0]}/")):
            if all(f"eval/{name}/{what}" in metrics for name in names):
                total = sum(w * metrics[f"eval/{name}/{what}"] for name, w in weights.items())
                found[f"eval/{group}/{what}"] = total / sum(weights.values())
    return found


def pass_rates_by_problem(folder: Path, step: int | None = None) -> PassRatesBySet:
    """Set -> problem -> pass rate, in the run's evaluation at a step; None: in its last one. A problem needs a graded answer."""
    return {
        name: {row["id"]: fmean(graded) for row in rows if (graded := [r for r in row["right"] if r is not None])}
        for name, rows in read_evaluation(folder, step).items()
    }


def with_eval_groups(
    pass_rates: PassRatesBySet, eval_groups: Mapping[str, Sequence[str]]
) -> dict[str, Mapping[str, float]]:
    """The sets, and each group of sets as one more."""
    together = {
        group: {f"{name}/{problem}": share for name in names for problem, share in pass_rates[name].items()}
        for group, names in eval_groups.items()
        if all(name in pass_rates for name in names)
    }
    return {**pass_rates, **together}


def at_equal_tokens_of(
    runs: Sequence[RunKey], eval_groups: Mapping[str, Sequence[str]], reference: str
) -> tuple[dict[str, float], list[Difference]]:
    """Cross -> tokens that its cheapest run sampled, and ``differences`` when each run had sampled so many. Runs that were not
    evaluated until then are left out."""
    evaluated = {folder: spent for *_, folder in runs if (spent := tokens_by_evaluation(folder))}
    tokens = equal_budgets([run for run in runs if run[-1] in evaluated])
    known = [run for run in runs if run[-1] in tokens and min(evaluated[run[-1]].values()) <= tokens[run[-1]]]
    by_factor = {factor: tokens[folder] for _, factor, _, folder in runs if folder in tokens}
    return by_factor, differences(known, eval_groups, reference, lambda folder: pass_rates_at(folder, tokens[folder]))


def equal_budgets(runs: Sequence[RunKey]) -> dict[Path, float]:
    """Folder -> tokens that the cheapest run of the same factor sampled in total."""
    spent = {folder: max(tokens_by_evaluation(folder).values()) for *_, folder in runs}
    cheapest = {factor: min(spent[f] for _, c, _, f in runs if c == factor) for _, factor, *_ in runs}
    return {folder: cheapest[factor] for _, factor, _, folder in runs}


def pass_rates_at(folder: Path, tokens: float) -> PassRatesBySet:
    """As ``pass_rates_by_problem`` when that many tokens had been sampled, by linear interpolation between two evaluations."""
    spent = sorted(tokens_by_evaluation(folder).items())
    after = next((i for i, (_, total) in enumerate(spent) if total >= tokens), len(spent) - 1)
    (step, total), (before, earlier) = spent[after], spent[max(after - 1, 0)]
    share = 1.0 if total == earlier else min((tokens - earlier) / (total - earlier), 1.0)
    late, early = pass_rates_by_problem(folder, step), pass_rates_by_problem(folder, before)
    return {
        name: {p: share * rate + (1.0 - share) * early[name][p] for p, rate in found.items() if p in early[name]}
        for name, found in late.items()
    }


def tokens_by_evaluation(folder: Path) -> dict[int, float]:
    """Step of an evaluation -> tokens that the run had sampled for training until then."""
    evaluated = evaluated_steps(folder)
    total, found = 0.0, {step: 0.0 for step in evaluated if step == 0}
    for row in logged(folder):
        total += sum(row.get(metric, 0.0) for metric in BUDGETS["tokens/generated"])
        if int(row["step"]) in evaluated:
            found[int(row["step"])] = total
    return found


def _difference(
    arm: str, factor: str, name: str, both: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]
) -> Difference:
    problems = sorted(both[0][0])
    own = np.array([[one[p] for p in problems] for one, _ in both])
    gaps = own - np.array([[other[p] for p in problems] for _, other in both])
    low, high = two_way_t_ci(gaps)
    by_seed = own.mean(1)
    return Difference(
        arm=arm, factor=factor, set=name, seeds=len(both), problems=len(problems), mean=float(own.mean()),
        spread=stdev(by_seed) if len(by_seed) > 1 else float("nan"), difference=float(gaps.mean()), low=low, high=high,
        detectable=detectable_difference(gaps),
    )  # fmt: skip


def differences_table(found: Sequence[Difference], when: str = "") -> Table:
    """A row for each arm and factor, a column for each set.

    Args:
        found: the differences to show
        when: added to the title: the state of the runs that the numbers describe
    """
    title = f"accuracy{when}; difference from the first arm, 95 % t interval over seeds and problems"
    return arm_table(title, found, lambda d: d.set, _difference_cell)


def power_line(found: Sequence[Difference]) -> str:
    """For each set the differences that the seeds and problems of its arms can find."""
    spans = []
    for name in dict.fromkeys(d.set for d in found):
        known = [d.detectable for d in found if d.set == name and d.detectable > 0]
        if known:
            low, high = f"{min(known):.3f}", f"{max(known):.3f}"
            spans.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    return (
        f"found in 80 % of repetitions with as many seeds and problems: a difference of {', '.join(spans)}"
        if spans
        else ""
    )


def _difference_cell(d: Difference) -> str:
    known = "" if math.isnan(d.low) else f" ({d.low:+.3f} to {d.high:+.3f})"
    return with_note(f"{d.mean:.3f}", f"{d.difference:+.3f}{known}")
