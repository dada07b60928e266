"""Markers in the rollouts of a step, counted in their text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from onpolicy.thinking import ThinkingSplit
from onpolicy.types import Example, Metrics
from rewards.doubt import prompt_text
from rewards.lexicon import count, merged, occurrences, words_of

QUARTERS = 4
HARD = 0.5
"""Share of a group's rollouts that are right from which its problem counts as easy."""


@dataclass(frozen=True)
class Marked:
    """One rollout and where its markers stand."""

    example: Example
    answer_at: int
    """Character from which on the text is the answer; before it is thinking."""
    hits: Mapping[str, Sequence[int]]
    """Lexicon -> character at which each marker begins, neighbours counted once."""
    words: Mapping[str, Counter[str]]
    """Lexicon -> each of its markers by itself."""

    @property
    def tokens(self) -> int:
        return len(self.example.rollout.completion_ids)

    def share(self, start: int, end: int) -> float:
        """Tokens of a part of the text, as its share of the characters."""
        return self.tokens * (end - start) / max(len(self.example.rollout.text), 1)


@dataclass(frozen=True)
class MarkerRates:
    """Rates per 1,000 sampled tokens, for each lexicon: pooled over the step unless said otherwise."""

    lexicons: Sequence[str]
    split: Callable[[str], ThinkingSplit]
    threshold: float = 0.5
    """Score from which an answer counts as right."""

    def __call__(self, examples: Sequence[Example], scores: Sequence[float]) -> Metrics:
        """
        Args:
            examples: the rollouts of a step
            scores: of each, what says whether it is right
        """
        if not examples:
            return {}
        marked = [self._marked(e) for e in examples]
        right = [score >= self.threshold for score in scores]
        success: defaultdict[int, list[bool]] = defaultdict(list)
        for example, ok in zip(examples, right, strict=True):
            success[example.group_id].append(ok)
        easy = [fmean(success[e.group_id]) >= HARD for e in examples]
        metrics: Metrics = {}
        for lexicon in self.lexicons:
            found = _rates(marked, lexicon) | {
                f"rate_per_1k/{name}": _pooled([m for m, keep in zip(marked, chosen, strict=True) if keep], lexicon)
                for name, chosen in (
                    ("correct", right),
                    ("wrong", [not r for r in right]),
                    ("easy", easy),
                    ("hard", [not e for e in easy]),
                )
            }
            metrics |= {f"epistemic/{lexicon}/{what}": value for what, value in found.items() if value is not None}
        texts = [e.rollout.text for e in examples]
        metrics["epistemic/seed10/paper_count"] = fmean(sum(count(t, "seed10", "paper").values()) for t in texts)
        return metrics

    def _marked(self, example: Example) -> Marked:
        text = example.rollout.text
        prompt = prompt_text(list(example.prompt.messages))
        found = {name: occurrences(text, name, prompt=prompt) for name in self.lexicons}
        return Marked(
            example=example,
            answer_at=len(text) - len(self.split(text).answer),
            hits={name: [a for a, _ in merged([(a, b) for a, b, _ in f], text)] for name, f in found.items()},
            words={name: Counter(word for _, _, word in f) for name, f in found.items()},
        )


def _rates(marked: Sequence[Marked], lexicon: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        "rate_per_1k": _pooled(marked, lexicon),
        "rate_per_1k/by_response": fmean(1000.0 * len(m.hits[lexicon]) / max(m.tokens, 1) for m in marked),
        "count": fmean(len(m.hits[lexicon]) for m in marked),
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


def _pooled(marked: Sequence[Marked], lexicon: str) -> float | None:
    tokens = sum(m.tokens for m in marked)
    return 1000.0 * sum(len(m.hits[lexicon]) for m in marked) / tokens if tokens else None


def _part(marked: Sequence[Marked], lexicon: str, edges: Callable[[Marked, int], tuple[int, int]]) -> float | None:
    """The pooled rate in a part of each text; None where no text has that part."""
    hits, tokens = 0, 0.0
    for m in marked:
        start, end = edges(m, len(m.example.rollout.text))
        hits += sum(start <= place < end for place in m.hits[lexicon])
        tokens += m.share(start, end)
    return 1000.0 * hits / tokens if tokens else None
