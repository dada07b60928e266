"""Intervals for means: a bootstrap over problems, and a t interval where seeds and problems are both samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

QUANTILES = (0.025, 0.975)
"""Bounds of a 95 % interval."""
POWER = 0.8
"""Share of repetitions in which a detectable difference is found."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def estimate_mean(values: Sequence[float]) -> Estimate:
    """The mean with the interval of ``bootstrap_ci``."""
    low, high = bootstrap_ci(values)
    return Estimate(fmean(values), low, high)


def bootstrap_ci(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over problems (2,000 resamples)."""
    import numpy as np
    from scipy.stats import bootstrap

    if len(set(values)) < 2:
        return values[0], values[0]
    result = bootstrap(
        (np.asarray(values),),
        np.mean,
        confidence_level=level,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(result.low), float(result.high)


def bootstrap_statistic_ci(
    rows: np.ndarray, statistic: Callable[[np.ndarray], float | None], *, resamples: int = 1000
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of any statistic of ``rows``, whose first axis is resampled.

    Args:
        rows: ``[problems, ...]``
        statistic: of resampled rows; resamples for which it is None are left out
        resamples: how many are drawn
    """
    import numpy as np

    draw = np.random.default_rng(0)
    chosen = draw.integers(len(rows), size=(resamples, len(rows)))
    values = [value for indices in chosen if (value := statistic(rows[indices])) is not None]
    low, high = np.quantile(values, QUANTILES)
    return float(low), float(high)


SWAPS_AT_ONCE = 500
"""Draws of ``swap_test`` that are in memory together."""


def swap_test(pairs: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, draws: int = 9999) -> float:
    """p-value of the hypothesis that the two models are alike: how often a difference is as large once models are swapped by problem.

    Where they are alike, either could have given either answers of a problem, whatever their distribution, so that the test keeps its
    level at any number of problems. A draw of which nothing can be said counts as one that is as large.

    Args:
        pairs: ``[problems, 2, ...]``
        statistic: ``[draws, problems, 2, ...]`` -> the difference of each draw, nan where there is none
        draws: how many are made
    """
    import numpy as np

    draw, seen, as_large = np.random.default_rng(0), abs(float(statistic(pairs[None])[0])), 0
    for start in range(0, draws, SWAPS_AT_ONCE):
        swapped = draw.integers(2, size=(min(SWAPS_AT_ONCE, draws - start), len(pairs)), dtype=np.uint8).astype(bool)
        shape = swapped.shape + (1,) * (pairs.ndim - 1)
        found = np.abs(statistic(np.where(swapped.reshape(shape), pairs[:, ::-1], pairs)))
        as_large += int(np.sum(~(found < seen - 1e-9)))
    return (1 + as_large) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value adjusted for there being several (Holm 1979): those below a level are wrong with at most that probability in all."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def change_of_accuracy(first: Sequence[Sequence[bool]], last: Sequence[Sequence[bool]]) -> Estimate:
    """Mean over problems of last minus first accuracy, with a 95 % interval that small samples do not make too narrow.

    At each end the wider of two: the t interval over the problems' differences, which says how other problems could differ, and
    Newcombe's interval (1998, method 10) over the samples, which does not shrink to nothing where all of them are correct.

    Args:
        first: by problem, whether each of its samples is correct; at least one each
        last: the same problems later
    """
    import numpy as np

    changes = [fmean(after) - fmean(before) for before, after in zip(first, last, strict=True)]
    ends = (
        [two_way_t_ci(np.array([changes])), _newcombe_ci(first, last)]
        if len(changes) > 1
        else [_newcombe_ci(first, last)]
    )
    return Estimate(fmean(changes), max(min(low for low, _ in ends), -1.0), min(max(high for _, high in ends), 1.0))


def _newcombe_ci(first: Sequence[Sequence[bool]], last: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """Of the difference of two proportions, from the Wilson interval of each."""
    from scipy.stats import binomtest

    ends = []
    for verdicts in (first, last):
        correct, samples = sum(map(sum, verdicts)), sum(map(len, verdicts))
        interval = binomtest(correct, samples).proportion_ci(method="wilson")
        ends.append((correct / samples, float(interval.low), float(interval.high)))
    (p, p_low, p_high), (q, q_low, q_high) = ends
    below, above = ((q - q_low) ** 2 + (p_high - p) ** 2) ** 0.5, ((q_high - q) ** 2 + (p - p_low) ** 2) ** 0.5
    return q - p - below, q - p + above


def two_way_t_ci(values: np.ndarray) -> tuple[float, float]:
    """95 % t interval for the mean of ``[seeds, problems]`` where both are samples: mean -+ sqrt(t_s^2 v_s + t_p^2 v_p).

    v_s and v_p are the variances of the row means and of the column means, each divided by their number, with the t quantile of its
    own degrees of freedom. Both contain the residual variance, so the interval errs on the wide side. A bootstrap over three seeds
    would be far too narrow. With one seed the interval is about other problems alone, with one problem about other seeds alone; with
    one of each nothing can be said (nan).
    """
    mean, half = float(values.mean()), _two_way_error(values, 0.0)
    return mean - half, mean + half


def detectable_difference(values: np.ndarray) -> float:
    """The true difference that as many seeds and problems would find in 80 % of repetitions: by which the interval of ``two_way_t_ci``
    would then exclude 0; sqrt((t_s + u_s)^2 v_s + (t_p + u_p)^2 v_p), u the 80 % quantiles. nan for a single value."""
    return _two_way_error(values, POWER)


def _two_way_error(values: np.ndarray, power: float) -> float:
    if values.size == 1:
        return float("nan")
    return (_squared_t_error(values.mean(1), power) + _squared_t_error(values.mean(0), power)) ** 0.5


def _squared_t_error(means: np.ndarray, power: float) -> float:
    """The variance of the means divided by their number, times the square of t, which a power above 0 adds its own quantile to; 0 for
    a single mean."""
    from scipy.stats import t

    n = len(means)
    if n == 1:
        return 0.0
    quantile = float(t.ppf(QUANTILES[1], n - 1)) + (float(t.ppf(power, n - 1)) if power else 0.0)
    return quantile**2 * float(means.var(ddof=1)) / n
