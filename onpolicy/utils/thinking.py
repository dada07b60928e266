"""Telling thinking from answer, for models that open the tag in their template, that write it themselves, or that have none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from onpolicy.utils.thinking_tags import THINK, ThinkingTags

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


def split_thinking(text: str, *, opened: bool, tags: ThinkingTags = THINK) -> ThinkingSplit:
    """Thinking and answer of a completion.

    ``opened`` says that the prompt already opened the tag (R1-Distill's template does). A closing tag that nothing
    opened ends thinking all the same: some models drop the tag that their template would have opened. Tags that
    repeat are all honoured: the answer is what stands outside of every span.
    """
    if not opened and tags.open not in text and tags.close in text:
        opened = True
    inside = opened
    thinking: list[str] = []
    answer: list[str] = []
    for piece in re.split(f"({re.escape(tags.open)}|{re.escape(tags.close)})", text):
        if piece in (tags.open, tags.close):
            inside = piece == tags.open
        else:
            (thinking if inside else answer).append(piece)
    if not opened and tags.open not in text:
        return ThinkingSplit(thinking="", answer=text, state="none")
    if inside:
        return ThinkingSplit(thinking="".join(thinking), answer="", state="truncated")
    return ThinkingSplit(thinking="".join(thinking), answer="".join(answer).lstrip(), state="closed")


def strip_thinking(text: str, *, opened: bool, tags: ThinkingTags = THINK) -> str:
    """The answer alone: nothing is left of a text whose thinking never closes, because nothing in it is an answer."""
    return split_thinking(text, opened=opened, tags=tags).answer


def strip_closed_thinking(text: str, *, tags: ThinkingTags = THINK) -> str:
    """The text without thinking that is closed; thinking that never closes stays, as do white space before a span and tags left over.

    A span runs from an opening tag to the next closing one and takes the white space behind it along. If a closing tag is left
    after that, its opening tag stood in the prompt: what precedes the first such tag is thinking too. So arXiv 2603.24472's
    code removes thinking from demonstrations (c = s without think).
    """
    outside, rest = "", text
    while tags.open in rest and tags.close in rest.partition(tags.open)[2]:
        before, _, inside = rest.partition(tags.open)
        outside, rest = outside + before, inside.partition(tags.close)[2].lstrip()
    outside += rest
    _, closed, behind = outside.partition(tags.close)
    return behind.lstrip() if closed else outside


def opens_thinking(generation_prompt: str, tags: ThinkingTags = THINK) -> bool:
    """Whether a rendered prompt leaves a thinking span open."""
    return generation_prompt.rfind(tags.open) > generation_prompt.rfind(tags.close)
