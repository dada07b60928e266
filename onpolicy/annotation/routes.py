"""Which rollouts go to a loss term: ``(scores of the group, index) -> share``, 0 for none and 1 for all of it.

A rollout with share 0 is not among the term's tokens and not in its denominator; shares between weigh its loss. Scores are
what the reward named by ``correctness`` gives (the sum of all rewards where there is none of that name).
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence

from onpolicy.annotation.credit import group_mean
from onpolicy.types import CORRECT_THRESHOLD

Route = Callable[[Sequence[float], int], float]


def all(scores: Sequence[float], index: int) -> float:
    """Every rollout."""
    return 1.0


def failures(scores: Sequence[float], index: int, *, threshold: float = CORRECT_THRESHOLD) -> float:
    """Those that failed.

    Args:
        threshold: score from which an answer counts as correct
    """
    return float(scores[index] < threshold)


def correct(scores: Sequence[float], index: int, *, threshold: float = CORRECT_THRESHOLD) -> float:
    """Those that succeeded.

    Args:
        threshold: score from which an answer counts as correct
    """
    return float(scores[index] >= threshold)


def mixed(scores: Sequence[float], index: int, *, threshold: float = CORRECT_THRESHOLD) -> float:
    """Those of groups in which some succeeded and some failed.

    Args:
        threshold: score from which an answer counts as correct
    """
    return float(0 < sum(s >= threshold for s in scores) < len(scores))


def frontier(scores: Sequence[float], index: int, *, threshold: float = CORRECT_THRESHOLD) -> float:
    """4 p (1 - p), p the share of the group that succeeded: most where it is half (SSOPD, arXiv 2605.17497).

    Args:
        threshold: score from which an answer counts as correct
    """
    rate = sum(s >= threshold for s in scores) / len(scores)
    return 4.0 * rate * (1.0 - rate)


def zero_variance(scores: Sequence[float], index: int) -> float:
    """Those of groups whose scores are all the same, where rewards teach nothing (HDPO, arXiv 2603.23871)."""
    return float(max(scores) == min(scores))


def above_average(scores: Sequence[float], index: int) -> float:
    """Those that did better than their group: A > 0 (SDPG, arXiv 2606.04036)."""
    return float(group_mean(scores)[index] > 0)


def not_above_average(scores: Sequence[float], index: int) -> float:
    """The others: A <= 0 (SRPO's code, arXiv 2604.02288)."""
    return float(group_mean(scores)[index] <= 0)


def all_failed(scores: Sequence[float], index: int, *, threshold: float = CORRECT_THRESHOLD) -> float:
    """Those of groups that failed as a whole (HDPO, arXiv 2603.23871).

    Args:
        threshold: score from which an answer counts as correct
    """
    return float(max(scores) < threshold)


def between_siblings(scores: Sequence[float], index: int, *, threshold: float = CORRECT_THRESHOLD) -> float:
    """Those with a correct and with a wrong sibling besides themselves (RLCSD, arXiv 2606.11709).

    Args:
        threshold: score from which an answer counts as correct
    """
    siblings = [s >= threshold for i, s in enumerate(scores) if i != index]
    return float(any(siblings) and not builtins.all(siblings))
