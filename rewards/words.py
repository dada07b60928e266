"""The words of a text, found once for everything that counts or compares them."""

from __future__ import annotations

import functools
import re
from itertools import accumulate

_WORD = re.compile(r"(\w+)")


@functools.lru_cache(maxsize=4)
def folded_words(text: str) -> tuple[str, ...]:
    """Each run of letters, digits and underscores, case folded."""
    # folding looks at one character at a time and neither makes nor takes a space, so all words fold at once
    words = " ".join(_pieces(text)[1::2]).casefold()
    return tuple(words.split(" ")) if words else ()


@functools.lru_cache(maxsize=4)
def word_places(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where each of these words begins, and where each ends."""
    edges = tuple(accumulate(map(len, _pieces(text))))
    return edges[:-1:2], edges[1::2]


@functools.lru_cache(maxsize=2)
def _pieces(text: str) -> list[str]:
    """What stands between words and the words, in turn."""
    return _WORD.split(text)
