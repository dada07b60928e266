"""An answer in its parts: what stands between separators outside of all brackets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class AnswerList(NamedTuple):
    """A list, set, point or interval as it is written."""

    opening: str
    """``(``, ``[`` or ``\\{``; empty for items without brackets."""
    items: list[str]
    closing: str


_OPENING, _CLOSING = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")
_PIECE = re.compile(r"\\[A-Za-z]+|\\.| (?:and|or|&) |[()\[\]{},;]|[<>=]=?|:")
_BETWEEN = (",", ";", " and ", " or ", " & ")


def split_parts(text: str, separators: Sequence[str]) -> tuple[list[str], list[str]]:
    """The parts outside of all brackets, and the separators between them."""
    parts, found, depth, start = [], [], 0, 0
    for piece in _PIECE.finditer(text):
        token = piece.group()
        depth = max(0, depth + (token in _OPENING) - (token in _CLOSING))
        if depth == 0 and token in separators:
            parts.append(text[start : piece.start()].strip())
            found.append(token.strip())
            start = piece.end()
    return [*parts, text[start:].strip()], found


def as_answer_list(text: str) -> AnswerList:
    """A text as a list: its own brackets taken off, ``\\pm`` written out."""
    opening = next((bracket for bracket in ("(", "[", "\\{") if text.startswith(bracket)), "")
    closing = next((bracket for bracket in (")", "]", "\\}") if text.endswith(bracket)), "")
    if opening and closing and len(text) > len(opening) + len(closing) and _closes_at_end(text):
        items, _ = split_parts(text[len(opening) : -len(closing)], _BETWEEN)
    else:
        opening, closing = "", ""
        items, _ = split_parts(text, _BETWEEN)
    items = [item for item in items if item]
    if opening in ("", "\\{"):
        items = [written for item in items for written in _signs(item)]
    return AnswerList(opening, items, closing)


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens a text is closed by its last one."""
    depth = 0
    for piece in _PIECE.finditer(text):
        depth += (piece.group() in _OPENING) - (piece.group() in _CLOSING)
        if depth == 0:
            return piece.end() == len(text)
    return False


def _signs(item: str) -> list[str]:
    if not _PLUS_MINUS.search(item):
        return [item]
    swapped = {"\\pm": "+", "\\mp": "-"}, {"\\pm": "-", "\\mp": "+"}
    return [_PLUS_MINUS.sub(lambda m, signs=signs: signs[m[1]], item) for signs in swapped]  # type: ignore[misc]


_PLUS_MINUS = re.compile(r"(\\pm|\\mp)(?![A-Za-z]) ?")
