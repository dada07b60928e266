"""Whether an arm keeps what the first arm learns without losing what that loses, on seeds on which the arm was not chosen.

A grid with a ``frontier`` names the arms, each with the controls that it has to beat: ``confirm: {protected: [protected_shuffled, grpo]}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from onpolicy.experiments.sweep.budgets import RunKey
from onpolicy.experiments.sweep.compare import (
    PassRatesBySet,
    pass_rates_at,
    pass_rates_by_problem,
    tokens_by_evaluation,
    with_eval_groups,
)
from onpolicy.experiments.sweep.grid import FRONTIER
from onpolicy.run.evaluate import pass_at_k
from onpolicy.run.evaluation_files import evaluated_steps, read_evaluation
from onpolicy.utils.stats import QUANTILES, holm
from onpolicy.utils.tables import table

LEAST_GAIN = 0.9
"""Share of the first arm's gain in domain that an arm has to keep."""
MOST_LOSS = 0.1
"""Share of the first arm's loss out of domain that an arm may have."""
LEVEL = 0.05
LEAST_SEEDS = 10
RESAMPLES = 10_000
IN_DOMAIN, OUT_OF_DOMAIN = FRONTIER
START = ""
"""Stands for the arm's own model before training."""
Array = np.ndarray


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % percentile bootstrap interval over seeds and problems, both resampled."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Confirmation:
    """What is found of one arm."""

    arm: str
    factor: str
    seeds: int
    gain_kept: Interval
    """Change in domain over the first arm's."""
    loss_kept: Interval
    """Change out of domain over the first arm's; 0: nothing is lost; below 0: something is gained."""
    beats: Mapping[str, Interval]
    """Control -> accuracy, mean of in and out of domain, minus the control's, at equal tokens."""
    samples: int
    """A problem, in the evaluations."""
    pass_at_samples: Interval
    """Change out of domain of the share of problems of which a sample is correct."""
    p_value: float
    """Of the hypothesis that a condition on gain, loss or a control is not met: the largest of theirs."""
    holm: float
    """The same, as one of all arms and factors that are to be confirmed (Holm 1979)."""
    verdict: str
    """``holds``, ``fails``, or ``undefined`` where the interval of the first arm's gain or loss includes 0."""


class Resamples:
    """Means as measured, and of ``RESAMPLES`` draws of seeds and of problems: the same draws for every array of the same shape."""

    def __init__(self, seeds: int) -> None:
        self._draw = np.random.default_rng(0)
        self._seeds = self._weights(seeds)
        self._problems: dict[int, Array] = {}

    def means(self, values: Array) -> Array:
        """``[seeds, problems]`` -> ``[1 + RESAMPLES]``, first the mean as measured."""
        problems = values.shape[1]
        if problems not in self._problems:
            self._problems[problems] = self._weights(problems)
        return np.asarray(((self._seeds @ values) * self._problems[problems]).sum(1))

    def _weights(self, n: int) -> Array:
        drawn = self._draw.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n
        return np.concatenate([np.full((1, n), 1 / n), drawn])


def confirmations(
    runs: Sequence[RunKey],
    eval_groups: Mapping[str, Sequence[str]],
    frontier: Mapping[str, str],
    confirm: Mapping[str, Sequence[str]],
    first: str,
) -> list[Confirmation]:
    """One for each arm and factor that has at least ``LEAST_SEEDS`` in common with the first arm and with its controls; runs without an
    evaluation at step 0 are left out.

    The conditions: change in domain minus .9 times the first arm's > 0; change out of domain minus .1 times the first arm's > 0; mean
    of both accuracies minus each control's > 0. A p-value is twice the share of the draws in which a condition is not met, at most 1,
    so that it goes with the 95 % intervals; an arm's is the largest of them (intersection-union test), and Holm's correction is over
    all arms of ``confirm`` and all factors, those with too few seeds so far too. Besides, the interval of the change of
    pass@samples out of domain may not lie below 0.

    Fewer seeds are not confirmed: a bootstrap over three seeds rejects a true hypothesis in a tenth of cases, over ten in a twentieth.

    Args:
        runs: finished runs
        eval_groups: name -> sets that are compared as one
        frontier: ``in_domain`` and ``out_of_domain`` -> a set or a group
        confirm: arm -> its controls
        first: the arm whose gain is to be kept and whose loss is to be avoided
    """
    runs, found = [run for run in runs if 0 in evaluated_steps(run[-1])], []
    factors = dict.fromkeys(factor for _, factor, *_ in runs)
    for factor in factors:
        folders = {(arm, seed): folder for arm, own, seed, folder in runs if own == factor}
        for arm, controls in confirm.items():
            names = (arm, first, *controls)
            seeds = [seed for a, seed in folders if a == arm and all((name, seed) in folders for name in names)]
            if len(seeds) >= LEAST_SEEDS:
                sides = {name: [folders[name, seed] for seed in seeds] for name in names}
                found.append(_confirmation(arm, factor, first, sides, eval_groups, frontier))
    not_yet = len(confirm) * len(factors) - len(found)
    adjusted = holm([*(c.p_value for c in found), *[1.0] * not_yet])[: len(found)]
    return [
        replace(c, holm=p, verdict=c.verdict or ("holds" if p < LEVEL and c.pass_at_samples.high >= 0 else "fails"))
        for c, p in zip(found, adjusted, strict=True)
    ]


def _confirmation(
    arm: str,
    factor: str,
    first: str,
    sides: Mapping[str, Sequence[Path]],
    eval_groups: Mapping[str, Sequence[str]],
    frontier: Mapping[str, str],
) -> Confirmation:
    draws = Resamples(len(sides[arm]))
    ends = {name: [pass_rates_by_problem(folder) for folder in folders] for name, folders in sides.items()}
    ends[START] = [pass_rates_by_problem(folder, 0) for folder in sides[arm]]
    accuracy = _means(draws, ends, eval_groups, frontier)
    gain, loss = ({name: accuracy[axis, name] - accuracy[axis, START] for name in (arm, first)} for axis in FRONTIER)
    ahead = {
        name: _ahead(draws, sides[arm], folders, eval_groups, frontier)
        for name, folders in sides.items()
        if name not in (arm, first)
    }
    samples, any_right = _any_right(sides[arm], eval_groups, frontier[OUT_OF_DOMAIN])
    conditions = [gain[arm] - LEAST_GAIN * gain[first], loss[arm] - MOST_LOSS * loss[first], *ahead.values()]
    defined = _interval(gain[first]).low > 0 and _interval(loss[first]).high < 0
    return Confirmation(
        arm=arm, factor=factor, seeds=len(sides[arm]), gain_kept=_ratio(gain[arm], gain[first]),
        loss_kept=_ratio(loss[arm], loss[first]), beats={name: _interval(own) for name, own in ahead.items()},
        samples=samples, pass_at_samples=_interval(draws.means(any_right)),
        p_value=max(min(1.0, 2 * (1 + int((own[1:] <= 0).sum())) / (1 + RESAMPLES)) for own in conditions), holm=1.0,
        verdict="" if defined else "undefined",
    )  # fmt: skip


def _ahead(
    draws: Resamples,
    arm: Sequence[Path],
    control: Sequence[Path],
    eval_groups: Mapping[str, Sequence[str]],
    frontier: Mapping[str, str],
) -> Array:
    """Mean of both accuracies minus a control's, when both had sampled as many tokens as the one of the pair that sampled fewer."""
    spent = [
        min(max(tokens_by_evaluation(folder).values()) for folder in pair) for pair in zip(arm, control, strict=True)
    ]
    sides = {
        name: [pass_rates_at(folder, tokens) for folder, tokens in zip(folders, spent, strict=True)]
        for name, folders in (("arm", arm), ("control", control))
    }
    equal = _means(draws, sides, eval_groups, frontier)
    return np.asarray(sum(equal[axis, "arm"] - equal[axis, "control"] for axis in frontier) / len(frontier))


def _means(
    draws: Resamples,
    ends: Mapping[str, Sequence[PassRatesBySet]],
    eval_groups: Mapping[str, Sequence[str]],
    frontier: Mapping[str, str],
) -> dict[tuple[str, str], Array]:
    """Axis and arm -> means of the accuracy, on the problems that all have."""
    found = {}
    for axis, name in frontier.items():
        own = {side: [with_eval_groups(rates, eval_groups)[name] for rates in rows] for side, rows in ends.items()}
        problems = sorted(set.intersection(*(set(rates) for rows in own.values() for rates in rows)))
        for side, rows in own.items():
            found[axis, side] = draws.means(np.array([[rates[p] for p in problems] for rates in rows]))
    return found


def _any_right(folders: Sequence[Path], eval_groups: Mapping[str, Sequence[str]], name: str) -> tuple[int, Array]:
    """The samples of a problem, and the change of pass@samples: ``[seeds, problems]``."""
    every = [[_graded(folder, step) for step in (None, 0)] for folder in folders]
    grouped = [[with_eval_groups(side, eval_groups)[name] for side in pair] for pair in every]  # type: ignore[arg-type]
    problems = sorted(set.intersection(*(set(side) for pair in grouped for side in pair)))
    counts = {p: min(len(side[p]) for pair in grouped for side in pair) for p in problems}  # type: ignore[arg-type]
    samples = max(counts.values())
    problems = [
        p for p in problems if counts[p] == samples
    ]  # a problem with fewer graded answers says nothing of pass@samples
    share = [[[pass_at_k(len(s[p]), sum(s[p]), samples) for p in problems] for s in pair] for pair in grouped]  # type: ignore
    last, start = np.moveaxis(np.array(share), 1, 0)
    return samples, last - start


def _graded(folder: Path, step: int | None) -> dict[str, dict[str, list[bool]]]:
    return {
        name: {row["id"]: graded for row in rows if (graded := [r for r in row["right"] if r is not None])}
        for name, rows in read_evaluation(folder, step).items()
    }


def _interval(means: Array) -> Interval:
    low, high = np.quantile(means[1:], QUANTILES) if len(means) > 1 else (np.nan, np.nan)
    return Interval(float(means[0]), float(low), float(high))


def _ratio(one: Array, other: Array) -> Interval:
    """nan where the first arm has not changed; draws in which it has not are left out."""
    changed = other != 0
    changed[0] = True
    with np.errstate(divide="ignore", invalid="ignore"):
        return _interval(one[changed] / other[changed])


def confirmation_table(found: Sequence[Confirmation]) -> Table:
    """A row for each condition of an arm under a factor, what is asked beside what is found, and then its verdict."""
    rows: list[Sequence[str] | None] = []
    for c in found:
        rows += [
            (" ".join(filter(None, (c.arm, c.factor))), f"{c.seeds} seeds", ""),
            ("  gain kept", _shown(c.gain_kept, ".2f"), f"> {LEAST_GAIN:g}"),
            ("  loss kept", _shown(c.loss_kept, ".2f"), f"< {MOST_LOSS:g}"),
            *((f"  minus {name}", _shown(own, "+.3f"), "> 0") for name, own in c.beats.items()),
            ("  p (Holm)", f"{c.holm:.2g}", f"< {LEVEL:g}"),
            (f"  pass@{c.samples} out of domain", _shown(c.pass_at_samples, "+.3f"), "not < 0"),
            ("  verdict", c.verdict, ""),
            None,
        ]
    return table("95 % percentile bootstrap interval over seeds and problems", ["condition", "found", "asked"], rows)


def _shown(value: Interval, form: str) -> str:
    return f"{value.value:{form}} ({value.low:{form}} to {value.high:{form}})"
