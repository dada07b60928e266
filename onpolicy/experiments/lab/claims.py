"""The findings of arXiv 2603.24472 as claims about runs of the lab, each with a 95 % t interval.

A claim holds where its whole interval lies on the side that the paper's finding names, fails where it lies on the other, and is open
where it includes zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

import numpy as np
from rich.table import Table

from onpolicy.config.resolve import resolve
from onpolicy.experiments.lab.sets import families, partial_families
from onpolicy.experiments.sft.traces import UNGUIDED
from onpolicy.experiments.sweep.compare import Difference, SweepComparison, against_reference
from onpolicy.experiments.sweep.grid import Cell
from onpolicy.run.run_dir import logged
from onpolicy.utils.stats import two_way_t_ci
from onpolicy.utils.tables import coloured, left, table

IN_DOMAIN, OUT_OF_DOMAIN = "unseen", "out_of_domain"
RATE = "epistemic/paper10/rate_per_1k"
PASS_RATE = "group/pass_rate"
LENGTH = "rollout/completion_length/mean"
DISTILLED = "distilled"


@dataclass(frozen=True)
class Claim:
    """One finding of the paper and its measurement here."""

    letter: str
    text: str
    value: float
    low: float
    high: float
    positive: bool
    """Whether the paper's finding is a value above zero."""

    @property
    def verdict(self) -> str:
        above, below = self.low > 0, self.high < 0
        if not (above or below):
            return "open"
        return "holds" if above == self.positive else "fails"


def ordered_contexts(measured: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[Claim]:
    """a. Each richer context minus the one before, over seeds."""
    by_name = [{row["context"]: row for row in rows} for rows in measured]
    names = ["unguided", "partial", "regenerated", "full"]
    for poorer, richer in itertools.pairwise(names):
        for what, read in (
            ("tokens", lambda r: r["mean"]["tokens"]["mean"]),
            ("markers per 1k", lambda r: r["mean"]["rate/paper10"]["mean"]),
        ):
            gaps = [read(rows[richer]) - read(rows[poorer]) for rows in by_name]
            yield over_seeds("a", f"{what}: {richer} minus {poorer}", gaps, positive=False)


def shortened(finished: Sequence[Cell], arm: str = DISTILLED) -> Iterator[Claim]:
    """b. Length, markers, and reward on the problems trained on, last step minus reference model."""
    for factor in dict.fromkeys(c.factor for c in finished):
        chosen = [c for c in finished if (c.arm, c.factor) == (arm, factor)]
        if not chosen:
            continue
        for what, metric, positive in (
            ("tokens of the rollouts", LENGTH, False),
            ("markers per 1k in the rollouts", RATE, False),
            ("accuracy on the problems trained on", PASS_RATE, True),
        ):
            gaps = [_gap(c.folder, metric) for c in chosen]
            yield over_seeds(
                "b", f"{_named(arm)}|D| = {factor}: {what}, last minus first step", gaps, positive=positive
            )


def out_of_domain(found: SweepComparison, arm: str = DISTILLED) -> Iterator[Claim]:
    """b. Accuracy on new problems of the family and out of domain."""
    for d in found.from_start:
        if d.arm == arm and d.set in (IN_DOMAIN, OUT_OF_DOMAIN):
            where = "new problems of the family" if d.set == IN_DOMAIN else "out of domain"
            text = f"{_named(arm)}|D| = {d.factor}: accuracy, {where}, minus reference model"
            yield claim_about("b", text, d, positive=d.set == IN_DOMAIN)


def _named(arm: str) -> str:
    return "" if arm == DISTILLED else f"{arm}, "


def narrowest(
    finished: Sequence[Cell], found: SweepComparison, eval_groups: Mapping[str, Sequence[str]], arm: str = DISTILLED
) -> Iterator[Claim]:
    """b. The coverage curve: what ten times as many problems bring out of domain, by a line through each seed's runs."""
    slopes = []
    for seed in dict.fromkeys(c.seed for c in finished):
        chosen = [c for c in finished if (c.arm, c.seed) == (arm, seed)]
        if len(chosen) > 1:
            changes = against_reference([c.run for c in chosen], eval_groups)
            own = {d.factor: d.difference for d in changes if d.set == OUT_OF_DOMAIN}
            slopes.append(
                linear_regression([math.log10(seen(c)) for c in chosen], [own[c.factor] for c in chosen]).slope
            )
    if slopes:
        worst = min((d for d in found.from_start if (d.arm, d.set) == (arm, OUT_OF_DOMAIN)), key=lambda d: d.difference)
        text = f"{_named(arm)}accuracy out of domain minus reference model, per factor of ten in |D| (worst at {worst.factor})"
        yield over_seeds("b", text, slopes, positive=True)


def seen(cell: Cell) -> int:
    """The number of different problems that a run trains on, limited by its steps."""
    resolved = resolve(cell.settings)
    visited = cell.settings.steps * resolved.data.settings.prompts_per_step
    known = families() | partial_families()
    every = len(known[resolved.data.plugin.options["family"]].train)
    return min(visited, resolved.data.settings.coverage.problems or every)


def other_arms(finished: Sequence[Cell], found: SweepComparison) -> Iterator[Claim]:
    """c. A moving teacher against a still one; d. GRPO against the reference model."""
    for d in found.differences:
        if (d.arm, d.set) == ("moving_teacher", OUT_OF_DOMAIN):
            yield claim_about(
                "c", f"|D| = {d.factor}: accuracy out of domain, moving (EMA) teacher minus frozen", d, positive=False
            )
    for d in found.from_start:
        if (d.arm, d.set) == ("grpo", OUT_OF_DOMAIN):
            yield claim_about(
                "d", f"|D| = {d.factor}: accuracy out of domain, GRPO minus reference model", d, positive=True
            )
            chosen = [c for c in finished if (c.arm, c.factor) == ("grpo", d.factor)]
            gaps = [_gap(c.folder, RATE) for c in chosen]
            yield over_seeds("d", f"|D| = {d.factor}: markers per 1k, GRPO, last minus first step", gaps, positive=True)


def fine_tuned(measured: Sequence[Difference]) -> Iterator[Claim]:
    """e. Fine-tuning on guided answers against fine-tuning on unguided ones."""
    for d in measured:
        if d.set == OUT_OF_DOMAIN and d.arm != UNGUIDED:
            yield claim_about(
                "e", f"accuracy out of domain, fine-tuned on {d.arm} minus on unguided", d, positive=False
            )


def over_seeds(letter: str, text: str, gaps: Sequence[float], *, positive: bool) -> Claim:
    """The mean over seeds with a t interval; with one seed, an interval without bounds."""
    mean = fmean(gaps)
    low, high = two_way_t_ci(np.array(gaps)[:, None]) if len(gaps) > 1 else (mean - 1e9, mean + 1e9)
    return Claim(letter, text, mean, low, high, positive)


def claims_table(claims: Sequence[Claim]) -> Table:
    colours = {"holds": "green", "fails": "red", "open": "yellow"}
    return table(
        "findings of arXiv 2603.24472 in miniature",
        ["", left("claim"), "measured", "95 %", left("the paper"), left("here")],
        (
            (
                c.letter,
                c.text,
                f"{c.value:+.3g}",
                f"{c.low:+.2g} to {c.high:+.2g}",
                "> 0" if c.positive else "< 0",
                coloured(c.verdict, colours[c.verdict]),
            )
            for c in claims
        ),
    )


def claim_about(letter: str, text: str, d: Difference, *, positive: bool) -> Claim:
    """A claim about a difference of accuracy."""
    return Claim(letter, text, d.difference, d.low, d.high, positive)


def _gap(folder: Path, metric: str) -> float:
    values = [row[metric] for row in logged(folder) if metric in row]
    return values[-1] - values[0]
