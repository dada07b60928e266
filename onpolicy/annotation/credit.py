"""Rewards of one group -> one advantage per rollout; every token of a rollout gets the same.

Equal rewards give exactly 0, whatever their value: a difference of 1e-17 that rounding leaves in a sum would count as a sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

ROUNDING = 1e-12
"""Largest difference between equal rewards, as a share of the largest."""


def are_equal(rewards: Sequence[float]) -> bool:
    """Whether there is no difference but that of rounding: .1 + .2 and .3 are equal."""
    return max(rewards) - min(rewards) <= ROUNDING * max(map(abs, rewards))


def group_mean(rewards: Sequence[float]) -> list[float]:
    """A_i = r_i - mean(r): Dr. GRPO (arXiv 2503.20783), which drops the division by the spread."""
    if are_equal(rewards):
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    return [r - mean for r in rewards]


def group_std(rewards: Sequence[float], *, epsilon: float = 1e-6) -> list[float]:
    """A_i = (r_i - mean(r)) / (std(r) + epsilon): GRPO (arXiv 2402.03300). One rollout alone gets 0.

    std is that of a sample, which divides by n - 1, and epsilon that of verl (TRL: 1e-4). However small the differences within a
    group, they become advantages of order one: a bonus of .001 in a group where all rollouts are correct weighs as much as being
    correct elsewhere.

    Args:
        epsilon: added to the standard deviation
    """
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    spread = stdev(rewards) + epsilon
    return [a / spread for a in group_mean(rewards)]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """A_i = r_i - mean of the others = n / (n - 1) (r_i - mean(r)): RLOO (arXiv 2402.14740). One rollout alone gets 0."""
    n = len(rewards)
    return [a * n / (n - 1) if n > 1 else 0.0 for a in group_mean(rewards)]
