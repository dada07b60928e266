"""Finds markers after which nothing changes."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise

from .words import folded_words, word_places

WINDOW = 60
"""Words before and after a marker that are compared."""
OVERLAP = 0.8
"""From this fraction of word pairs after a marker that also occur before it, nothing has changed."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def vacuous(text: str, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether nothing changes after each marker: up to the next one, or for 60 words, no number is new and most pairs of words occurred in
    the 60 words before.

    Args:
        text: the completion
        spans: positions of its markers, in order, as ``lexicon.find`` returns them
    """
    if not spans:
        return []
    folded, (starts, ends) = folded_words(text), word_places(text)
    places = among_words(text, spans)
    first_seen: dict[str, int] = {}  # where each number had been written once
    for number in _NUMBER.finditer(text):
        first_seen.setdefault(number.group(), number.end())
    found = []
    for (first, last), following in zip(places, [*(first for first, _ in places[1:]), len(folded)], strict=True):
        stop = min(last + WINDOW, following)
        before, after = folded[max(0, first - WINDOW) : first], folded[last:stop]
        found.append(
            len(after) < 2
            or (not _has_new_number(text, starts[last], ends[stop - 1], first_seen) and _repeats(before, after))
        )
    return found


def among_words(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """For each span the index of its first word among the words of the text (``words.folded_words``), and of the first word after it."""
    starts, ends = word_places(text)
    return [(bisect_right(ends, start), bisect_left(starts, end)) for start, end in spans]


def _has_new_number(text: str, start: int, end: int, first_seen: Mapping[str, int]) -> bool:
    """Whether this part of a text holds a number that had not been written before it."""
    return any(first_seen.get(number, end) > start for number in _NUMBER.findall(text, start, end))


def _repeats(before: Sequence[str], after: Sequence[str]) -> bool:
    known, pairs = set(pairwise(before)), list(pairwise(after))
    return sum(pair in known for pair in pairs) >= OVERLAP * len(pairs)
