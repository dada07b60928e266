"""Which rollouts go to a loss term: ``(scores of the group, index) -> share``, 0 for none and 1 for all of it.

A rollout with share 0 is not among the term's tokens and not in its denominator; shares between weigh its loss. Scores are
what the reward named by ``correctness`` gives (the sum of all rewards where there is none of that name). A route that has to see
the rollouts themselves has a third positional parameter, ``group``, and is given the ``RolloutGroup``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from onpolicy.types import CORRECT_THRESHOLD, RolloutGroup

Route = Callable[..., float]
"""``(scores, index)`` or ``(scores, index, group)``."""


def share_of(route: Route, scores: Sequence[float], index: int, group: RolloutGroup) -> float:
    """What a route says about a rollout; it is given the group where it asks for one."""
    if "group" in inspect.signature(route).parameters:
        return route(scores, index, group)
    return route(scores, index)


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
    return float(scores[index] > sum(scores) / len(scores))


def finished(scores: Sequence[float], index: int, group: RolloutGroup) -> float:
    """Those that ended by themselves. The others are masked out of the loss and still count in their group's credit (RLCR, arXiv
    2507.16806; the overlong filtering of DAPO, 2503.14476)."""
    return float(group.rollouts[index].finish_reason == "stop")
