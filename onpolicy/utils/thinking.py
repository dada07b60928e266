"""Telling thinking from answer, for models that open the tag in their template, that write it themselves, or that have none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"

State = Literal["none", "closed", "truncated"]


@dataclass(frozen=True)
class ThinkingSplit:
    """A completion in two parts."""

    thinking: str
    """Without its tags; spans after the first are joined to it."""
    answer: str
    """What follows; empty where the thinking never ended."""
    state: State
    """``none``: no thinking; ``closed``: it ended; ``truncated``: it was opened and never closed."""


def split_thinking(text: str, *, opened: bool) -> ThinkingSplit:
    """Thinking and answer of a completion.

    ``opened`` says that the prompt already opened the tag (R1-Distill's template does). A closing tag that nothing
    opened ends thinking all the same: some models drop the tag that their template would have opened. Tags that
    repeat are all honoured: the answer is what stands outside of every span.
    """
    if not opened and OPEN not in text and CLOSE in text:
        opened = True
    inside = opened
    thinking: list[str] = []
    answer: list[str] = []
    for piece in re.split(f"({re.escape(OPEN)}|{re.escape(CLOSE)})", text):
        if piece in (OPEN, CLOSE):
            inside = piece == OPEN
        else:
            (thinking if inside else answer).append(piece)
    if not opened and OPEN not in text:
        return ThinkingSplit(thinking="", answer=text, state="none")
    if inside:
        return ThinkingSplit(thinking="".join(thinking), answer="", state="truncated")
    return ThinkingSplit(thinking="".join(thinking), answer="".join(answer).lstrip(), state="closed")


def strip_thinking(text: str, *, opened: bool) -> str:
    """The text without its thinking, as arXiv 2603.24472 removes it from demonstrations (c = s without think).

    Its code leaves a text whole whose thinking never closes; here nothing is left of such a text, because nothing in
    it is an answer.
    """
    return split_thinking(text, opened=opened).answer


def opens_thinking(generation_prompt: str) -> bool:
    """Whether a rendered prompt leaves a thinking span open."""
    return generation_prompt.rfind(OPEN) > generation_prompt.rfind(CLOSE)
