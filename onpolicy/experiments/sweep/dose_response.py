"""The dose-response of a sweep: what a bonus or penalty does, by how much it weighed in the advantages (``credit/dose``) and not by its
weight, which says little where rewards are divided by their group's standard deviation.

A grid names what is read at the end of each run, sets (their accuracy at the last evaluation) or metrics (their mean over the last tenth
of the steps; a cost, e.g. ``tokens/generated``, as the run's sum), e.g. ``dose_response: [unseen, epistemic/rewarded/rate_per_1k]``. Where
the bonus is a term's ``advantage``, token by token, it names the term as well, e.g. ``dose: policy_gradient``: the dose is the root mean
square, over tokens, of what that changes, over that of the group's advantage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from onpolicy.experiments.analysis.plot import drawing_library, save_drawing
from onpolicy.experiments.sweep.budgets import costs
from onpolicy.experiments.sweep.compare import pass_rates_by_problem, pooled_metrics, with_eval_groups
from onpolicy.experiments.sweep.grid import Cell
from onpolicy.experiments.sweep.palette import colour, symbol
from onpolicy.run.run_dir import logged
from onpolicy.utils.stats import two_way_t_ci

DOSE = "credit/dose"
END = 0.1
"""The share of a run's steps over which a metric is read: what one step of a few rollouts logs is noise."""
PANELS = 4
"""In a row of the figure."""
LINEAR = 0.1
"""Doses up to this one are drawn to scale, larger ones by their logarithm: a sweep's doses are .05 and 20 alike."""


@dataclass(frozen=True)
class Response:
    """What is read at the end of runs with one bonus at one weight."""

    arm: str
    factor: str
    seeds: int
    dose: float
    """Mean over steps and seeds; below 0 where the weight is."""
    read: Mapping[str, tuple[float, float, float]]
    """Name -> mean over seeds, and a 95 % t interval over seeds; without bounds from one seed."""


def responses(
    finished: Sequence[Cell], eval_groups: Mapping[str, Sequence[str]], read: Sequence[str], term: str = ""
) -> list[Response]:
    """A point for each arm and factor whose runs logged a dose, in the order of the grid.

    Args:
        finished: runs
        eval_groups: name -> sets that are compared as one
        read: sets, groups, or metrics
        term: the term whose ``advantage`` is the bonus; empty: a reward is
    """
    found = []
    for arm, factor in dict.fromkeys((c.arm, c.factor) for c in finished):
        chosen = [c for c in finished if (c.arm, c.factor) == (arm, factor)]
        doses = [_token_dose(c, term) if term else _dose(c) for c in chosen]
        if all(dose is not None for dose in doses):
            values = [_values(c.folder, eval_groups, read) for c in chosen]
            known = {
                name: mean_with_interval([v[name] for v in values]) for name in read if all(name in v for v in values)
            }
            found.append(Response(arm, factor, len(chosen), fmean(d for d in doses if d is not None), known))
    return found


def _dose(cell: Cell) -> float | None:
    """Signed as the first weight that is not correctness's; None for a run without a step that logged one."""
    doses = [row[DOSE] for row in logged(cell.folder) if DOSE in row]
    if not doses:
        return None
    rewards = cell.canonical["rewards"]
    deciding = cell.canonical.get("correctness") or rewards[0].get("name")
    signs = (_sign(reward.get("weight", 1.0)) for reward in rewards if reward.get("name") != deciding)
    return next((sign for sign in signs if sign), 1.0) * fmean(doses)


def _token_dose(cell: Cell, term: str) -> float | None:
    """Signed as the mean change is; None for a run without a step that logged one."""
    changes = [row for row in logged(cell.folder) if row.get(f"{term}/squared_group")]
    if not changes:
        return None
    doses = [math.sqrt(row[f"{term}/squared_change"] / row[f"{term}/squared_group"]) for row in changes]
    return math.copysign(fmean(doses), math.fsum(row[f"{term}/change"] for row in changes))


def _sign(weight: Any) -> float:
    """Of a weight, or of the first of a schedule's numbers that is not 0."""
    numbers = weight.values() if isinstance(weight, Mapping) else [weight]
    return next((math.copysign(1.0, n) for n in numbers if isinstance(n, int | float) and n), 0.0)


def _values(folder: Path, eval_groups: Mapping[str, Sequence[str]], read: Sequence[str]) -> dict[str, float]:
    """What is known of a run among what is read."""
    rates = with_eval_groups(pass_rates_by_problem(folder), eval_groups)
    found = costs(folder) | {name: fmean(own.values()) for name, own in rates.items()}
    rows = logged(folder)
    end = [pooled_metrics(row, eval_groups) for row in rows if row["step"] > rows[-1]["step"] * (1 - END)]
    for name in read:
        values = [row[name] for row in end if row.get(name) is not None]
        if values and name not in found:
            found[name] = fmean(values)
    return {name: found[name] for name in read if name in found}


def mean_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """A run's value each -> their mean and its 95 % t interval; without bounds from one run."""
    bounds = two_way_t_ci(np.array(values)[:, None]) if len(values) > 1 else (-math.inf, math.inf)
    return fmean(values), *bounds


def draw_dose_axis(panel: Any) -> None:
    """The axis of the doses of one panel, from penalties to bonuses, and what it has to look like beside."""
    panel.axvline(0, color="#bbbbbb", lw=0.8, zorder=0)
    panel.set_xscale("symlog", linthresh=LINEAR)
    panel.tick_params(labelsize=8, labelbottom=True)
    panel.spines[["top", "right"]].set_visible(False)


def draw_responses(found: Sequence[Response], read: Sequence[str], path: Path) -> None:
    """A panel for each reading, a line for each arm; bars are 95 % t intervals over seeds."""
    rows, columns = math.ceil(len(read) / PANELS), min(len(read), PANELS)
    figure = drawing_library(path)(figsize=(4.2 * columns, 3.8 * rows), layout="constrained")
    panels: Any = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for panel in panels[len(read) :]:
        panel.remove()
    for panel, name in zip(panels[: len(read)], read, strict=True):
        for n, arm in enumerate(dict.fromkeys(r.arm for r in found)):
            own = sorted((r for r in found if r.arm == arm and name in r.read), key=lambda r: r.dose)
            if own:
                mean, low, high = zip(*(r.read[name] for r in own), strict=True)
                bars = [[m - b if math.isfinite(b) else 0.0 for m, b in zip(mean, low, strict=True)],
                        [b - m if math.isfinite(b) else 0.0 for m, b in zip(mean, high, strict=True)]]  # fmt: skip
                doses = [r.dose for r in own]
                panel.errorbar(
                    doses, mean, yerr=bars, color=colour(n), marker=symbol(n), ms=4, lw=1, capsize=2, label=arm
                )
        draw_dose_axis(panel)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("realised dose", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    save_drawing(figure, path)
