"""Finds markers after which nothing changes."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
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
    ends = [first for first, _ in places[1:]] + [len(words)]
    return [
        _nothing_new(text, words[max(0, first - WINDOW) : first], words[last : min(last + WINDOW, end)])
        for (first, last), end in zip(places, ends, strict=True)
    ]


def among_words(text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[re.Match[str]], list[tuple[int, int]]]:
    """The words of a text, and for each span the index of its first word and of the first word after it."""
    words = list(_WORD.finditer(text))
    starts = [w.start() for w in words]
    return words, [(bisect_left(starts, start), bisect_left(starts, end)) for start, end in spans]


def _nothing_new(text: str, before: Sequence[re.Match[str]], after: Sequence[re.Match[str]]) -> bool:
    if len(after) < 2:
        return True
    numbers = set(_NUMBER.findall(text[after[0].start() : after[-1].end()]))
    if numbers - set(_NUMBER.findall(text[: after[0].start()])):
        return False
    known, pairs = set(_pairs(before)), _pairs(after)
    return sum(pair in known for pair in pairs) >= OVERLAP * len(pairs)


def _pairs(words: Sequence[re.Match[str]]) -> list[tuple[str, str]]:
    return list(pairwise(w.group().casefold() for w in words))
