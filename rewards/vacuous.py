"""Finds markers after which nothing changes."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise

WINDOW = 60
"""Words before and after a marker that are compared."""
OVERLAP = 0.8
"""From this fraction of word pairs after a marker that also occur before it, nothing has changed."""

_WORD = re.compile(r"\w+")
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
    words, places = among_words(text, spans)
    folded = [w.group().casefold() for w in words]
    first_seen: dict[str, int] = {}  # where each number had been written once
    for number in _NUMBER.finditer(text):
        first_seen.setdefault(number.group(), number.end())
    found = []
    for (first, last), following in zip(places, [*(first for first, _ in places[1:]), len(words)], strict=True):
        before, after = slice(max(0, first - WINDOW), first), slice(last, min(last + WINDOW, following))
        found.append(
            len(folded[after]) < 2
            or (not _has_new_number(text, words[after], first_seen) and _repeats(folded[before], folded[after]))
        )
    return found


def among_words(text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[re.Match[str]], list[tuple[int, int]]]:
    """The words of a text, and for each span the index of its first word and of the first word after it."""
    words = list(_WORD.finditer(text))
    starts, ends = [w.start() for w in words], [w.end() for w in words]
    return words, [(bisect_right(ends, start), bisect_left(starts, end)) for start, end in spans]


def _has_new_number(text: str, part: Sequence[re.Match[str]], first_seen: Mapping[str, int]) -> bool:
    """Whether these words of a text hold a number that had not been written before them."""
    start, end = part[0].start(), part[-1].end()
    return any(first_seen.get(number, end) > start for number in _NUMBER.findall(text[start:end]))


def _repeats(before: Sequence[str], after: Sequence[str]) -> bool:
    known, pairs = set(pairwise(before)), list(pairwise(after))
    return sum(pair in known for pair in pairs) >= OVERLAP * len(pairs)
