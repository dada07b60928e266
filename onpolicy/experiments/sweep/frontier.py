"""The frontier between learning and keeping: every arm's accuracy in domain against its accuracy out of domain, both minus the reference
model's, at every evaluation of its runs.

A grid names the two sets, or groups of sets: ``frontier: {in_domain: unseen, out_of_domain: other}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from onpolicy.experiments.analysis.plot import drawing_library, save_drawing
from onpolicy.experiments.sweep.budgets import RunKey, arm_table
from onpolicy.experiments.sweep.compare import Difference, against_reference, tokens_by_evaluation
from onpolicy.experiments.sweep.confirmation import LEAST_GAIN, MOST_LOSS
from onpolicy.experiments.sweep.grid import FRONTIER
from onpolicy.experiments.sweep.palette import colour, symbol
from onpolicy.run.evaluation_files import evaluated_steps

MARGIN = 0.15
"""Around the ways, of what they span."""
MOST_IN_A_COLUMN = 20
"""Arms of a figure's legend."""
MOST_CLEAR = 6
"""With more arms than this, their ways and intervals are drawn faintly."""


@dataclass(frozen=True)
class FrontierPoint:
    """An arm under one factor, when its runs had made so many steps."""

    arm: str
    factor: str
    step: int
    seeds: int
    tokens: float
    """Sampled for training until then, mean over seeds."""
    in_domain: Difference
    """From the reference model."""
    out_of_domain: Difference


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
        own = [run for run in runs if run[:2] == (arm, factor) and 0 in evaluated_steps(run[-1])]
        steps = set.intersection(*(set(evaluated_steps(folder)) for *_, folder in own)) if own else set()
        for step in sorted(steps - {0}):
            changes = {d.set: d for d in against_reference(own, eval_groups, step)}
            tokens = fmean(tokens_by_evaluation(folder)[step] for *_, folder in own)
            axes = {axis: changes[name] for axis, name in frontier.items()}
            found.append(FrontierPoint(arm, factor, step, len(own), tokens, **axes))
    return found


def frontier_table(points: Sequence[FrontierPoint]) -> Table:
    """Where each arm ended."""
    ends = {(p.arm, p.factor): p for p in points}
    shown = [d for p in ends.values() for d in (p.in_domain, p.out_of_domain)]
    title = "accuracy minus reference model, 95 % t interval over seeds and problems"
    return arm_table(title, shown, lambda d: d.set, lambda d: f"{d.difference:+.3f} ({d.low:+.3f} to {d.high:+.3f})")


def draw_frontier(
    points: Sequence[FrontierPoint], frontier: Mapping[str, str], path: Path, *, bar: bool = False
) -> None:
    """A panel for each factor: each arm's way from the reference model at (0, 0), the intervals at its end; upper right is better. The axes
    are those of the ways: the interval of an arm with two seeds may go beyond them.

    Args:
        points: of all arms; the first arm's first
        frontier: ``in_domain`` and ``out_of_domain`` -> the set of each axis
        path: where to write
        bar: whether to shade what an arm has to reach to be confirmed, by the first arm's last point
    """
    factors = list(dict.fromkeys(p.factor for p in points))
    arms = list(dict.fromkeys(p.arm for p in points))
    columns = 1 + (len(arms) - 1) // MOST_IN_A_COLUMN
    figure = drawing_library(path)(figsize=(5.4 * len(factors) + 1.9 * columns, 5.0), layout="constrained")
    panels: Any = figure.subplots(1, len(factors), sharex=True, sharey=True, squeeze=False)[0]
    for panel, factor in zip(panels, factors, strict=True):
        for n, arm in enumerate(arms):
            own = [p for p in points if (p.arm, p.factor) == (arm, factor)]
            if own:
                _draw_way(panel, own, colour(n), symbol(n), faint=len(arms) > MOST_CLEAR)
        panel.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
        panel.axvline(0, color="#bbbbbb", lw=0.8, zorder=0)
        panel.set_title(factor, fontsize=9)
        panel.set_xlabel(f"{frontier[FRONTIER[0]]}: accuracy minus reference model", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for limit, name in zip((panels[0].set_xlim, panels[0].set_ylim), FRONTIER, strict=True):
        changes = [0.0, *(getattr(p, name).difference for p in points)]
        margin = MARGIN * (max(changes) - min(changes)) or MARGIN
        limit(min(changes) - margin, max(changes) + margin)
    for panel, factor in zip(panels, factors, strict=True) if bar else ():
        if first := [p for p in points if (p.arm, p.factor) == (arms[0], factor)]:
            _draw_bar(panel, first[-1])
    panels[0].set_ylabel(f"{frontier[FRONTIER[1]]}: accuracy minus reference model", fontsize=8)
    handles = {h.get_label(): h for panel in panels for h in panel.get_lines() if not h.get_label().startswith("_")}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False, ncols=columns)
    save_drawing(figure, path)


def _draw_way(panel: Any, own: Sequence[FrontierPoint], shade: str, marker: str, *, faint: bool) -> None:
    x, y = ([0.0, *(getattr(p, name).difference for p in own)] for name in FRONTIER)
    panel.plot(x, y, color=shade, lw=1.0, alpha=0.3 if faint else 0.7)
    end = own[-1]
    spread = [[[d.difference - d.low], [d.high - d.difference]] for d in (end.in_domain, end.out_of_domain)]
    panel.errorbar(
        x[-1], y[-1], xerr=spread[0], yerr=spread[1], color=shade, lw=0.8, capsize=2, alpha=0.4 if faint else 1.0
    )
    panel.plot(x[-1], y[-1], marker, color=shade, ms=6, label=end.arm)


def _draw_bar(panel: Any, first: FrontierPoint) -> None:
    """Shades at least ``LEAST_GAIN`` of the first arm's gain and at most ``MOST_LOSS`` of its loss."""
    left, low = LEAST_GAIN * first.in_domain.difference, MOST_LOSS * first.out_of_domain.difference
    panel.autoscale(False)
    panel.fill_between([left, 1.0], low, 1.0, color="#55a868", alpha=0.15, lw=0, zorder=0)
