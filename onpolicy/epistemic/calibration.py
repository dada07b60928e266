"""Does confidence go with correctness? Several readings of confidence, one scoreboard."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from onpolicy.epistemic.marked import MarkedRollout
from onpolicy.rewards.equality import by_equality
from onpolicy.rewards.extract import extract_answer
from onpolicy.types import Metrics

LEAST_IN_BIN, MOST_BINS = 20, 10


def brier(confidence: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean of (c - r)^2: 0 is perfect, .25 what saying one half earns."""
    return fmean((c - r) ** 2 for c, r in zip(confidence, correct, strict=True))


def ece(confidence: Sequence[float], correct: Sequence[bool]) -> float:
    """sum_b n_b / n |accuracy in b - mean confidence in b| over bins of equal mass with 20 answers or more, at most 10 of them.

    Answers of equal confidence stand in one bin: told apart by their outcome, they would make a calibrated model look bad.
    """
    pairs = sorted(zip(confidence, correct, strict=True), key=lambda pair: pair[0])
    n = len(pairs)
    bins = min(MOST_BINS, max(1, n // LEAST_IN_BIN))
    cuts = (bisect_left(pairs, pairs[n * b // bins][0], key=lambda pair: pair[0]) for b in range(bins))
    parts = [pairs[a:b] for a, b in pairwise([*dict.fromkeys(cuts), n])]
    return sum(len(p) / n * abs(fmean(r for _, r in p) - fmean(c for c, _ in p)) for p in parts)


def auroc(confidence: Sequence[float], correct: Sequence[bool]) -> float | None:
    """Chance that a correct answer has more confidence than a wrong one, ties counting half; None without both."""
    from scipy.stats import rankdata

    n_correct = sum(correct)
    n_incorrect = len(correct) - n_correct
    if not n_correct or not n_incorrect:
        return None
    ranks = rankdata(confidence)
    total = float(sum(rank for rank, r in zip(ranks, correct, strict=True) if r))
    return (total - n_correct * (n_correct + 1) / 2) / (n_correct * n_incorrect)


def auroc_within(confidence: Sequence[float], correct: Sequence[bool], problem: Sequence[int]) -> float | None:
    """The same over pairs of answers to the same problem, so that easy problems do not make it look good."""
    wins = pairs = 0.0
    for group in set(problem):
        rows = [(c, r) for c, r, p in zip(confidence, correct, problem, strict=True) if p == group]
        n = sum(r for _, r in rows) * sum(not r for _, r in rows)
        within = auroc([c for c, _ in rows], [r for _, r in rows])
        if within is not None:
            wins, pairs = wins + n * within, pairs + n
    return wins / pairs if pairs else None


def scoreboard(marked: Sequence[MarkedRollout], lexicon: str) -> Metrics:
    """``calibration/<reading>/...`` of the confidence of the rollouts that were graded; what cannot be said is absent.

    - ``stated``: in a ``<confidence>`` tag; ``agreement``: share of the problem's other rollouts with the same final answer. Both are
      probabilities: ``brier``, ``ece``, ``gap`` (mean confidence minus accuracy), ``share`` (of rollouts that have it)
    - ``likelihood``: mean log-probability of a sampled token; ``no_hedging``: the negative rate of the lexicon's markers. These only order
      answers: ``auroc``, and ``auroc_within`` problems, as for the others
    """
    metrics: Metrics = {}
    for name, readings, probability in (
        ("stated", [m.stated_confidence for m in marked], True),
        ("agreement", agreement(marked), True),
        ("likelihood", [m.likelihood for m in marked], False),
        ("no_hedging", [-m.rate(lexicon) for m in marked], False),
    ):
        kept = [
            (c, m.correct, m) for c, m in zip(readings, marked, strict=True) if c is not None and m.correct is not None
        ]
        if not kept:
            continue
        confidence, correct = [c for c, _, _ in kept], [r for _, r, _ in kept]
        found: dict[str, float | None] = {
            "auroc": auroc(confidence, correct),
            "auroc_within": auroc_within(confidence, correct, [m.group for *_, m in kept]),
        }
        if probability:
            found |= {"brier": brier(confidence, correct), "ece": ece(confidence, correct), "share": len(kept) / len(marked),
                      "gap": fmean(confidence) - fmean(correct)}  # fmt: skip
        metrics |= {f"calibration/{name}/{what}": value for what, value in found.items() if value is not None}
    return metrics


def agreement(marked: Sequence[MarkedRollout]) -> list[float | None]:
    """For each rollout the share of its problem's other rollouts with the same final answer; None without an answer or others."""
    places: dict[int, list[int]] = {}
    for place, m in enumerate(marked):
        places.setdefault(m.group, []).append(place)
    answers: list[int | None] = [None] * len(marked)
    groups: dict[int, list[int | None]] = {}
    for group, members in places.items():
        groups[group] = by_equality([extract_answer(marked[place].rollout.answer_text) for place in members])
        for place, answer in zip(members, groups[group], strict=True):
            answers[place] = answer
    return [
        None if answer is None or len(groups[m.group]) < 2 else (groups[m.group].count(answer) - 1) / (len(groups[m.group]) - 1)
        for m, answer in zip(marked, answers, strict=True)
    ]  # fmt: skip
