"""Text that others wrote, as a terminal may show it: nothing in it colours, links, moves the cursor or hides a part."""

from __future__ import annotations

import re

from rich.markup import escape

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but for tab and newline, and those that turn the direction of text."""


def printable(text: str) -> str:
    """Control characters as their escapes: ``\\x1b`` in place of what begins a terminal's command."""
    return UNSEEN.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def plain(text: object) -> str:
    """For where rich reads markup: what it shows is the text itself, brackets and all."""
    return escape(printable(str(text)))
