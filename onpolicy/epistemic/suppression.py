"""How much less uncertainty is expressed than by the reference model on the same problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from onpolicy.epistemic.baseline import ProblemBaseline
from onpolicy.epistemic.marked import MarkedRollout
from onpolicy.rewards.lexicon import words_of
from onpolicy.rewards.uncertainty import per_1k
from onpolicy.types import Metrics
from onpolicy.utils.stats import bootstrap_ci, bootstrap_statistic_ci

EPSILON = 0.5
"""Added to both rates before their logarithms are compared, markers per 1,000 tokens."""
HELD_OUT = ("self_doubt", "hedges", "alternatives")
"""Lists that should move with the one that is followed if the uncertainty is real."""


def suppression(
    marked: Sequence[MarkedRollout], start: Mapping[str, ProblemBaseline], lexicons: Sequence[str], followed: str
) -> Metrics:
    """``epistemic/<lexicon>/suppression...`` over the problems whose start is known; below 0 means fewer markers.

    - ``suppression``: S, mean over problems of log((rate + .5) / (reference model's rate + .5)); ``/low`` and ``/high``: 95 % bootstrap
      interval over problems
    - ``suppression/at_length``, of the list that is followed: log of the Mantel-Haenszel rate ratio over responses of like length
      (within a factor of two), so that shorter answers alone do not move it
    - ``audit/<followed>/lead``: S of the list that is followed less the mean S of the held-out lists; what is only said for a reward leads
    """
    problems: dict[str, list[MarkedRollout]] = {}
    for m in marked:
        if m.prompt.id in start:
            problems.setdefault(m.prompt.id, []).append(m)
    if not problems:
        return {}
    metrics: Metrics = {f"epistemic/{followed}/suppression/problems": float(len(problems))}
    for lexicon in lexicons:
        changes = [_log_ratio(group, start[name], lexicon) for name, group in problems.items()]
        metrics |= _with_interval(f"epistemic/{lexicon}/suppression", fmean(changes), bootstrap_ci(changes))
    tables = np.stack([_by_length(group, start[name], followed) for name, group in problems.items()])
    at_length = mantel_haenszel(tables.sum(0))
    if at_length is not None:
        bounds = bootstrap_statistic_ci(tables, lambda rows: mantel_haenszel(rows.sum(0)))
        metrics |= _with_interval(f"epistemic/{followed}/suppression/at_length", at_length, bounds)
    held_out = [name for name in HELD_OUT if name in lexicons and not set(words_of(name)) & set(words_of(followed))]
    if held_out:
        others = fmean(metrics[f"epistemic/{name}/suppression"] for name in held_out)
        metrics[f"audit/{followed}/lead"] = metrics[f"epistemic/{followed}/suppression"] - others
    return metrics


def _with_interval(name: str, value: float, bounds: tuple[float, float]) -> Metrics:
    return {name: value, f"{name}/low": bounds[0], f"{name}/high": bounds[1]}


def _log_ratio(group: Sequence[MarkedRollout], start: ProblemBaseline, lexicon: str) -> float:
    now = per_1k(sum(len(m.spans[lexicon]) for m in group), sum(m.tokens for m in group))
    then = per_1k(sum(start.markers[lexicon]), sum(start.tokens))
    return math.log((now + EPSILON) / (then + EPSILON))


def _by_length(group: Sequence[MarkedRollout], start: ProblemBaseline, lexicon: str) -> np.ndarray:
    """[octaves of length, 4]: markers and tokens now, markers and tokens at the start."""
    table = np.zeros((32, 4))
    now = [(len(m.spans[lexicon]), m.tokens) for m in group]
    for column, rows in ((0, now), (2, zip(start.markers[lexicon], start.tokens, strict=True))):
        for count, tokens in rows:
            table[min(tokens.bit_length(), 31), column : column + 2] += count, tokens
    return table


def mantel_haenszel(table: np.ndarray) -> float | None:
    """log of sum_i a_i T0_i / T_i over sum_i b_i T1_i / T_i; None where no stratum has both.

    a and b are the markers now and at the start with T1 and T0 tokens, T = T0 + T1; each rate is raised by .5 per 1,000.

    Args:
        table: [strata, 4] a, T1, b, T0
    """
    a, t1, b, t0 = table[(table[:, 1] > 0) & (table[:, 3] > 0)].T
    if not len(a):
        return None
    total, floor = t0 + t1, EPSILON / 1000.0
    return float(np.log(((a + floor * t1) * t0 / total).sum() / ((b + floor * t0) * t1 / total).sum()))
