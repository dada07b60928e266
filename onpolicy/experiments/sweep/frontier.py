"""The frontier between learning and keeping: every arm's accuracy in domain against its accuracy out of domain, both minus the reference
model's, at every evaluation of its runs.

A grid names the two sets, or groups of sets: ``frontier: {in_domain: unseen, out_of_domain: other}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.table import Table

from onpolicy.experiments.analysis.plot import drawing_library
from onpolicy.experiments.sweep.budgets import RunKey, arm_table
from onpolicy.experiments.sweep.compare import pass_rates_by_problem, tokens_by_evaluation, with_eval_groups
from onpolicy.experiments.sweep.grid import FRONTIER
from onpolicy.experiments.sweep.palette import colour, symbol
from onpolicy.run.evaluation_files import evaluated_steps
from onpolicy.utils.stats import two_way_t_ci


@dataclass(frozen=True)
class Change:
    """Accuracy minus the reference model's, mean over seeds and problems, with the 95 % t interval of ``two_way_t_ci``."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class FrontierPoint:
    """An arm under one factor, when its runs had made so many steps."""

    arm: str
    factor: str
    step: int
    seeds: int
    tokens: float
    """Sampled for training until then, mean over seeds."""
    in_domain: Change
    out_of_domain: Change


@dataclass(frozen=True)
class _End:
    arm: str
    factor: str
    set: str
    change: Change


def frontier_points(
    runs: Sequence[RunKey], eval_groups: Mapping[str, Sequence[str]], frontier: Mapping[str, str]
) -> list[FrontierPoint]:
    """A point for every arm, factor and step at which all its runs were evaluated, by step; runs without an evaluation at step 0 are left
    out.

    Args:
        runs: finished runs
        eval_groups: name -> sets that are compared as one
        frontier: ``in_domain`` and ``out_of_domain`` -> a set or a group
    """
    found = []
    for arm, factor in dict.fromkeys((arm, factor) for arm, factor, *_ in runs):
        folders = [f for a, c, _, f in runs if (a, c) == (arm, factor) and 0 in evaluated_steps(f)]
        if not folders:
            continue
        steps = reduce(set.intersection, (set(evaluated_steps(f)) for f in folders))
        for step in sorted(steps - {0}):
            changes = {name: _change(folders, step, eval_groups, chosen) for name, chosen in frontier.items()}
            tokens = fmean(tokens_by_evaluation(f)[step] for f in folders)
            found.append(FrontierPoint(arm, factor, step, len(folders), tokens, **changes))
    return found


def _change(folders: Sequence[Path], step: int, eval_groups: Mapping[str, Sequence[str]], name: str) -> Change:
    pairs = [
        tuple(with_eval_groups(pass_rates_by_problem(f, s), eval_groups)[name] for s in (step, 0)) for f in folders
    ]
    problems = sorted(set.intersection(*(set(rates) for pair in pairs for rates in pair)))
    gaps = np.array([[late[p] - early[p] for p in problems] for late, early in pairs])
    low, high = two_way_t_ci(gaps)
    return Change(float(gaps.mean()), low, high)


def frontier_table(points: Sequence[FrontierPoint], frontier: Mapping[str, str]) -> Table:
    """Where each arm ended."""
    ends = {(p.arm, p.factor): p for p in points}
    shown = [_End(p.arm, p.factor, name, getattr(p, axis)) for p in ends.values() for axis, name in frontier.items()]
    title = "accuracy minus reference model, 95 % t interval over seeds and problems"
    return arm_table(
        title, shown, lambda e: e.set, lambda e: f"{e.change.mean:+.3f} ({e.change.low:+.3f} to {e.change.high:+.3f})"
    )


def draw_frontier(points: Sequence[FrontierPoint], frontier: Mapping[str, str], path: Path) -> None:
    """A panel for each factor: each arm's way from the reference model at (0, 0), the intervals at its end; upper right is better."""
    factors = list(dict.fromkeys(p.factor for p in points))
    arms = list(dict.fromkeys(p.arm for p in points))
    figure = drawing_library(path)(figsize=(4.6 * len(factors), 4.4), layout="constrained")
    panels: Any = figure.subplots(1, len(factors), sharex=True, sharey=True, squeeze=False)[0]
    for panel, factor in zip(panels, factors, strict=True):
        for n, arm in enumerate(arms):
            own = [p for p in points if (p.arm, p.factor) == (arm, factor)]
            if own:
                _draw_way(panel, own, colour(n), symbol(n))
        panel.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
        panel.axvline(0, color="#bbbbbb", lw=0.8, zorder=0)
        panel.set_title(factor, fontsize=9)
        panel.set_xlabel(f"{frontier[FRONTIER[0]]}: accuracy minus reference model", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"{frontier[FRONTIER[1]]}: accuracy minus reference model", fontsize=8)
    handles = {h.get_label(): h for panel in panels for h in panel.get_lines() if not h.get_label().startswith("_")}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path)


def _draw_way(panel: Any, own: Sequence[FrontierPoint], shade: str, marker: str) -> None:
    x, y = ([0.0, *(getattr(p, name).mean for p in own)] for name in FRONTIER)
    panel.plot(x, y, color=shade, lw=1.2, alpha=0.7)
    end = own[-1]
    spread = [[[c.mean - c.low], [c.high - c.mean]] for c in (end.in_domain, end.out_of_domain)]
    panel.errorbar(x[-1], y[-1], xerr=spread[0], yerr=spread[1], color=shade, lw=0.8, capsize=2)
    panel.plot(x[-1], y[-1], marker, color=shade, ms=6, label=end.arm)
