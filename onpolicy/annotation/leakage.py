"""How much of what only the teacher was shown turns up in the student's answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np


def repeated_share(
    context: Sequence[int], known: Sequence[int], completion: Sequence[int], *, n: int = 8
) -> float | None:
    """Share of the context's runs of n tokens, those the student was shown left out, that occur in the completion.

    Some of it is chance and arithmetic: compare with the first step. None where the context has no such run.

    Args:
        context: [P'] the privileged prompt
        known: [P] the student's prompt
        completion: [T] what the student sampled
        n: tokens in a run
    """
    secret = _secret(tuple(context), tuple(known), n)
    return float(np.isin(secret, _runs(completion, n)).mean()) if len(secret) else None


@functools.lru_cache(maxsize=8)
def _secret(context: tuple[int, ...], known: tuple[int, ...], n: int) -> np.ndarray:
    """The context's runs of n tokens but for those that are known; the rollouts of a group share them."""
    return np.setdiff1d(_runs(context, n), _runs(known, n))


def _runs(ids: Sequence[int], n: int) -> np.ndarray:
    """One number for each run of n tokens; equal runs have equal numbers, and others, but for chance of 2^-64, do not."""
    if len(ids) < n:
        return np.empty(0, dtype=np.uint64)
    numbers, found = np.asarray(ids, dtype=np.uint64), np.zeros(len(ids) - n + 1, dtype=np.uint64)
    for k, factor in enumerate(_factors(n)):
        found += numbers[k : len(numbers) - n + 1 + k] * factor
    return found


@functools.cache
def _factors(n: int) -> np.ndarray:
    """[n] odd numbers."""
    return np.random.default_rng(0).integers(1, 2**63, size=n, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
