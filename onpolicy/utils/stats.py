"""How far a mean over problems can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Measured:
    """A mean over problems and its bootstrap interval."""

    mean: float
    low: float
    high: float


def measured(values: Sequence[float]) -> Measured:
    low, high = interval(values)
    return Measured(fmean(values), low, high)


def interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean over problems (percentile, 2,000 resamples)."""
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
