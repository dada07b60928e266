"""Finds mathematics and code in a text, in one pass: words in them are names, not the writer's own."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence

Spans = list[tuple[int, int]]

DELIMITER = re.compile(r"\\\\|\\\$|\\[()\[\]]|```|[`$]|[_^]\{")
"""What may open or close a formula or code. LaTeX's line break (two backslashes, as in ``\\\\[4pt]``) and an escaped dollar do neither."""
BRACKETS = {"\\(": "\\)", "\\[": "\\]"}
PROSE = re.compile(r"[.,;:!?]\s+[A-Za-z]{2}")
"""What stands between two prices ("$5. Wait, so it is 6$") and not in a formula that begins with a number."""
EDGE = re.compile(r"[{}\n]")
SCRIPT = 80
"""Longest subscript or superscript in braces, in characters."""


def literal(text: str) -> Spans:
    """The positions of mathematics and code, in order: ``$...$``, ``$$...$$``, ``\\(...\\)``, ``\\[...\\]``, back-quotes, and subscripts
    and superscripts in braces. What is never closed opens nothing, apart from a block of code.

    A dollar sign stands for money where pandoc's rule finds no formula: the opening one must not be followed by a space; the closing one
    must not follow a space or precede a digit. Nor does one open a formula that stands before punctuation, or after a number ("5$") and
    before anything but a letter, a command, a subscript or a superscript, or before a number that a sentence follows.
    """
    tokens = [(m.group(), m.start()) for m in DELIMITER.finditer(text)]
    places: dict[str, list[int]] = defaultdict(list)
    for token, place in tokens:
        places[token].append(place)
    found: Spans = []
    at = 0
    for token, place in tokens:
        if place >= at and (end := _end(text, token, place, places)) is not None:
            found.append((place, end))
            at = end
    return found


def _end(text: str, token: str, place: int, places: Mapping[str, Sequence[int]]) -> int | None:
    """Where that ends which a delimiter opens; None where it opens nothing."""
    if token in BRACKETS:
        close = _next(places.get(BRACKETS[token], ()), place + 3)
        return None if close is None else close + 2
    if token == "```":
        close = _next(places["```"], place + 3)
        return len(text) if close is None else close + 3
    if token == "`":
        close = _next(places["`"], place + 1)
        return None if close is None or close == place + 1 or "\n" in text[place:close] else close + 1
    if token == "$":
        return _formula_end(text, place, places["$"])
    return _script_end(text, place) if token[-1] == "{" else None


def _formula_end(text: str, place: int, dollars: Sequence[int]) -> int | None:
    if text.startswith("$$", place):
        close = _next(dollars, place + 3)
        while close is not None and not text.startswith("$$", close):
            close = _next(dollars, close + 1)
        if close is not None:
            return close + 2
    following = text[place + 1 : place + 3]
    if (
        not following
        or following[0].isspace()
        or following[0] in "$,;:!?)]}"
        or (following[0] == "." and not following[1:].isdigit())
    ):
        return None
    if text[place - 1 : place].isdigit() and not (following[0].isalpha() or following[0] in "\\^_{"):
        return None
    close = _next(dollars, place + 1)
    if close is not None and following[0].isdigit() and PROSE.search(text, place, close):
        return None
    if close is None or text[close - 1].isspace() or text[close + 1 : close + 2].isdigit() or "\n" in text[place:close]:
        return None
    return close + 1


def _script_end(text: str, place: int) -> int | None:
    depth = 0
    for edge in EDGE.finditer(text, place + 1, place + SCRIPT):
        depth += {"{": 1, "}": -1, "\n": -SCRIPT}[edge.group()]
        if depth <= 0:
            return edge.end() if depth == 0 else None
    return None


def _next(places: Sequence[int], start: int) -> int | None:
    """The first of the places from ``start`` on."""
    i = bisect_left(places, start)
    return places[i] if i < len(places) else None
