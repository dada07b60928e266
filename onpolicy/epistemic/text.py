"""How often markers stand in the rollouts of a step, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

from onpolicy.epistemic.marked import MarkedRollout
from onpolicy.rewards.lexicon import words_of
from onpolicy.types import Metrics

QUARTERS = 4
EASY, HARD = 2 / 3, 1 / 3
"""A problem is easy where more than this share of its rollouts is correct, hard where less than that is."""

CHOICES: dict[str, Callable[[MarkedRollout], bool]] = {
    "correct": lambda m: m.correct is True,
    "incorrect": lambda m: m.correct is False,
    "easy": lambda m: m.pass_rate > EASY,
    "medium": lambda m: HARD <= m.pass_rate <= EASY,
    "hard": lambda m: m.pass_rate < HARD,
    "cut_off": lambda m: m.rollout.finish_reason == "length",
    "finished": lambda m: m.rollout.finish_reason != "length",
}
"""Parts of a step that are looked at by themselves."""


def marker_rates(marked: Sequence[MarkedRollout], lexicons: Sequence[str]) -> Metrics:
    """``epistemic/<lexicon>/...`` per 1,000 sampled tokens, pooled over the step unless the name says otherwise."""
    if not marked:
        return {}
    metrics: Metrics = {}
    for lexicon in lexicons:
        found = _rates(marked, lexicon) | {
            f"rate_per_1k/{name}": pooled_rate([m for m in marked if chosen(m)], lexicon)
            for name, chosen in CHOICES.items()
        }
        metrics |= {f"epistemic/{lexicon}/{what}": value for what, value in found.items() if value is not None}
    metrics["epistemic/paper10/paper_count"] = fmean(m.paper_count for m in marked)
    return metrics


def _rates(marked: Sequence[MarkedRollout], lexicon: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        "rate_per_1k": pooled_rate(marked, lexicon),
        "rate_per_1k/by_completion": fmean(m.rate(lexicon) for m in marked),
        "count": fmean(len(m.spans[lexicon]) for m in marked),
        "rate_per_1k/thinking": _part(marked, lexicon, lambda m, n: (0, m.answer_at)),
        "rate_per_1k/answer": _part(marked, lexicon, lambda m, n: (m.answer_at, n)),
    }
    for q in range(QUARTERS):
        edges = lambda m, n, q=q: (n * q // QUARTERS, n * (q + 1) // QUARTERS)  # noqa: E731
        found[f"rate_per_1k/quarter_{q + 1}"] = _part(marked, lexicon, edges)
    words: Counter[str] = Counter()
    for m in marked:
        words.update(m.words[lexicon])
    total = sum(m.tokens for m in marked)
    return found | {f"word_per_1k/{word}": 1000.0 * words[word] / max(total, 1) for word in words_of(lexicon)}


def pooled_rate(marked: Sequence[MarkedRollout], lexicon: str) -> float | None:
    """Markers of all over tokens of all, per 1,000; None without a token."""
    tokens = sum(m.tokens for m in marked)
    return 1000.0 * sum(len(m.spans[lexicon]) for m in marked) / tokens if tokens else None


def _part(
    marked: Sequence[MarkedRollout], lexicon: str, edges: Callable[[MarkedRollout, int], tuple[int, int]]
) -> float | None:
    """The pooled rate in a part of each text; None where no text has that part."""
    hits, tokens = 0, 0.0
    for m in marked:
        start, end = edges(m, len(m.text))
        hits += sum(start <= place < end for place, _ in m.spans[lexicon])
        tokens += m.share(start, end)
    return 1000.0 * hits / tokens if tokens else None
