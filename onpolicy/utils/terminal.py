"""What reaches the terminal: other people's text made safe to show, and libraries' start-up messages kept out."""

from __future__ import annotations

import logging
import os
import re

from rich.markup import escape

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, and those that change the direction of text."""
CHATTY = ("vllm", "DeepSpeed")
"""Loggers that say nothing about the run below the level of an error."""


def printable(text: str) -> str:
    """Control characters as their escapes: ``\\x1b`` in place of the character that starts a terminal command."""
    return UNSEEN.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def plain(text: object) -> str:
    """For places where rich reads markup: shows the text itself, brackets included."""
    return escape(printable(str(text)))


def quiet_libraries() -> None:
    """Hides what libraries print at start-up; errors still come through. Call it before torch is imported; variables that the
    user has set win."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in CHATTY:
        # a filter stays when the library sets its own level later
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
        logging.getLogger(f"{name}.triton_utils.importing").addFilter(lambda record: record.levelno >= logging.ERROR)
