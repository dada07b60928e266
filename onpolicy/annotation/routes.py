"""Which rollouts go to a loss term: ``(scores of the group, index) -> share``, 0 for none and 1 for all of it.

A rollout with share 0 is not among the term's tokens and not in its denominator; shares between weigh its loss. Scores are
what the reward named by ``correctness`` gives (the sum of all rewards where there is none of that name). A route that has to see
the rollouts themselves has a third positional parameter, ``rollouts``, and is given those of the group; one that takes
rollouts which were sampled with a context (``privileged_rollouts``) has a parameter ``is_privileged``. All others get none of these.
The score of a rollout that was not graded is NaN: it is neither correct nor wrong, and counts in no share of its group.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import isnan

from onpolicy.annotation.credit import are_equal, group_mean
from onpolicy.types import CORRECT_THRESHOLD, Rollout

Route = Callable[..., float]
"""``(scores, index)``, and ``rollouts``, ``is_privileged`` or both behind them."""


def share_of(
    route: Route, scores: Sequence[float], index: int, rollouts: Sequence[Rollout], *, privileged: bool = False
) -> float:
    """What a route says about a rollout, given what its parameters ask for.

    Args:
        route: the route
        scores: of the group
        index: which of its rollouts
        rollouts: of the group
        privileged: whether they were sampled with a context that the student does not have
    """
    parameters = inspect.signature(route).parameters
    if privileged and "is_privileged" not in parameters:
        return 0.0
    known = {"rollouts": rollouts, "is_privileged": privileged}
    return route(scores, index, **{name: value for name, value in known.items() if name in parameters})


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
    return float(0 < sum(s >= threshold for s in scores) < len(_graded(scores)))


def frontier(scores: Sequence[float], index: int, *, threshold: float = CORRECT_THRESHOLD) -> float:
    """4 p (1 - p), p the share of the group that succeeded: most where it is half (SSOPD, arXiv 2605.17497).

    Args:
        threshold: score from which an answer counts as correct
    """
    rate = sum(s >= threshold for s in scores) / max(len(_graded(scores)), 1)
    return 4.0 * rate * (1.0 - rate)


def zero_variance(scores: Sequence[float], index: int) -> float:
    """Those of groups whose scores are all the same, where rewards teach nothing."""
    graded = _graded(scores)
    return float(not graded or are_equal(graded))


def above_average(scores: Sequence[float], index: int) -> float:
    """Those that did better than their group: A > 0 (SDPG, arXiv 2606.04036)."""
    return float(_above_mean(scores, index) > 0)


def not_above_average(scores: Sequence[float], index: int) -> float:
    """The others: A <= 0 (SRPO's code, arXiv 2604.02288)."""
    return float(_above_mean(scores, index) <= 0)


def _graded(scores: Sequence[float]) -> list[float]:
    return [score for score in scores if not isnan(score)]


def _above_mean(scores: Sequence[float], index: int) -> float:
    """By how much a score is above the mean of the graded ones; NaN for one that was not graded."""
    return scores[index] if isnan(scores[index]) else group_mean(_graded(scores))[len(_graded(scores[:index]))]


def finished(scores: Sequence[float], index: int, rollouts: Sequence[Rollout]) -> float:
    """Those that ended by themselves. The others are masked out of the loss and still count in their group's credit (RLCR, arXiv
    2507.16806; the overlong filtering of DAPO, 2503.14476)."""
    return float(rollouts[index].finish_reason == "stop")


def privileged(scores: Sequence[float], index: int, is_privileged: bool) -> float:
    """Correct rollouts that the model sampled with a context, for groups in which all others failed (`privileged_rollouts`; HDPO, arXiv
    2603.23871), and no others."""
    return float(is_privileged)
