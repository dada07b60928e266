"""Rewards of one group -> one advantage per rollout; every token of a rollout gets the same."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev


def group_mean(rewards: Sequence[float]) -> list[float]:
    """A_i = r_i - mean(r): Dr. GRPO (arXiv 2503.20783), which drops the division by the spread."""
    mean = fmean(rewards)
    return [r - mean for r in rewards]


def group_std(rewards: Sequence[float], *, epsilon: float = 1e-4) -> list[float]:
    """A_i = (r_i - mean(r)) / (std(r) + epsilon): GRPO (arXiv 2402.03300), population standard deviation.

    However small the differences within a group, they become advantages of order one: a bonus of .001 in a group where
    all rollouts are correct weighs as much as being correct elsewhere.

    Args:
        epsilon: added to the standard deviation
    """
    spread = pstdev(rewards) + epsilon
    return [a / spread for a in group_mean(rewards)]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """A_i = r_i - mean of the others: RLOO (arXiv 2402.14740). One rollout alone gets 0."""
    n, total = len(rewards), sum(rewards)
    return [r - (total - r) / (n - 1) if n > 1 else 0.0 for r in rewards]
