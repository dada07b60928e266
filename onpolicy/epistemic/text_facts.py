"""What a completion's text says by itself, read once for everything that counts, audits or calibrates it.

It needs neither the model nor the scores, and is small beside the text: another process can read it.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import NamedTuple

from onpolicy.rewards.calibration import stated_confidence
from onpolicy.rewards.extract import stated_answers
from onpolicy.rewards.lexicon import count, merged, occurrences
from onpolicy.rewards.uncertainty import repetition
from onpolicy.rewards.vacuous import among_words, vacuous
from onpolicy.rewards.words import folded_words
from onpolicy.types import Rollout
from onpolicy.utils.thinking import ThinkingSplit

Split = Callable[[str], ThinkingSplit]
CARRIER = 5
"""Words from a marker on that make the phrase it is carried in."""
LEAST_BYTES = 100
"""Shorter texts do not compress in a way that says anything."""


class MarkerUse(NamedTuple):
    """One marker in its text; a tuple, because texts full of doubt have many and they are pickled."""

    vacuous: bool
    after_answer: bool
    phrase: str
    gap: int | None
    """Words since the marker before; None for the first."""


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """One completion."""

    answer_at: int
    """Character from which on the text is the answer; before it is thinking."""
    final_at: int
    """Character at which the last stated answer begins; the text's length where none is stated."""
    spans: Mapping[str, Sequence[tuple[int, int]]]
    """Lexicon -> where each marker stands, neighbours as one."""
    words: Mapping[str, Counter[str]]
    """Lexicon -> each of its markers by itself."""
    uses: Mapping[str, Sequence[MarkerUse]]
    """Audited lexicon -> how each of its markers is used."""
    paper_count: int
    """Markers as arXiv 2603.24472 counts them."""
    repetition: float
    """Share of runs of four words that occurred before."""
    compression: float | None
    """Compressed size over size; None for a text too short to tell."""
    stated_confidence: float | None
    """In its ``<confidence>`` tag; None without one."""
    likelihood: float | None
    """Mean log-probability of its tokens under the generator; None where none is known."""


def text_facts(
    rollout: Rollout, question: str, lexicons: Sequence[str], split: Split, audited: Sequence[str] = ()
) -> TextFacts:
    """Reads a text; what the lexicons hold of the last text that was read is known.

    Args:
        rollout: with the text
        question: the text of its prompt, whose quotations hold no markers
        lexicons: whose markers are located
        split: text -> thinking and answer
        audited: those of the lexicons whose use can be audited
    """
    text = rollout.text
    found = {name: occurrences(text, name, prompt=question) for name in lexicons}
    spans = {name: merged([(a, b) for a, b, _ in f], text) for name, f in found.items()}
    stated = stated_answers(text)
    final_at = stated[-1][0] if stated else len(text)
    return TextFacts(
        answer_at=len(text) - len(split(text).answer),
        final_at=final_at,
        spans=spans,
        words={name: Counter(word for _, _, word in f) for name, f in found.items()},
        uses={name: marker_uses(text, spans[name], final_at) for name in audited},
        paper_count=sum(count(text, "paper10", "paper").values()),
        repetition=-repetition(text),
        compression=compression(text),
        stated_confidence=stated_confidence(text),
        likelihood=likelihood(rollout),
    )


def marker_uses(text: str, spans: Sequence[tuple[int, int]], final_at: int) -> list[MarkerUse]:
    """How each marker is used, in order.

    Args:
        text: the completion
        spans: where its markers stand
        final_at: character at which its last stated answer begins
    """
    if not spans:
        return []
    words, places = folded_words(text), among_words(text, spans)
    before = [None, *(last for _, last in places[:-1])]
    return [
        MarkerUse(
            vacuous=empty,
            after_answer=start > final_at,
            phrase=" ".join(words[first : last + CARRIER]),
            gap=None if previous is None else first - previous,
        )
        for (start, _), (first, last), empty, previous in zip(spans, places, vacuous(text, spans), before, strict=True)
    ]


def likelihood(rollout: Rollout) -> float | None:
    """Mean log-probability of a sampled token under the generator; None where none is finite."""
    found = [p for p in rollout.select_sampled(rollout.rollout_logprobs) if isfinite(p)]
    return fmean(found) if found else None


def compression(text: str) -> float | None:
    """Compressed size over size; None for a text too short to tell."""
    raw = text.encode()
    return len(zlib.compress(raw)) / len(raw) if len(raw) >= LEAST_BYTES else None
