"""Which texts open and close a model's thinking: given, or found in its generation prompt, its tokens or its chat template."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ThinkingTags:
    """The texts between which a model thinks."""

    open: str
    close: str

    def __str__(self) -> str:
        return f"{self.open} … {self.close}"


THINK = ThinkingTags("<think>", "</think>")
"""What a model is taken to write where nothing says otherwise."""

_TAG = re.compile(r"(?i)(<[|｜]?|\[|◁)(/?)([\w:.\-]*(?:think|thought|reasoning)[\w:.\-]*)([|｜]?>|\]|▷)")
_PAIRS = (("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END"))
"""Words of a name that say whether it opens or closes, as in ``<|begin_of_thought|>``; elsewhere a slash before the name closes."""


def find_tags(prompt_end: str, tokens: Iterable[str], template: str) -> tuple[ThinkingTags, str]:
    """The tags of a model and where they were found.

    What the generation prompt ends with counts most, because completions go on from there, and half a pair is enough. Elsewhere both
    tags must occur; the usual ones come first.

    Args:
        prompt_end: how every prompt ends
        tokens: texts of the tokenizer's added tokens
        template: the chat template's source
    """
    if written := _pairs(prompt_end):
        return (_complete(prompt_end) or written)[-1], "the generation prompt"
    for place, text in (("the tokenizer", "\n".join(tokens)), ("the chat template", template)):
        if complete := _complete(text):
            return THINK if THINK in complete else complete[0], place
    return THINK, "nothing in tokenizer or template: assumed"


def _complete(text: str) -> list[ThinkingTags]:
    return [tags for tags in _pairs(text) if tags.open in text and tags.close in text]


def _pairs(text: str) -> list[ThinkingTags]:
    """The pairs of which either half occurs in a text, in order."""
    found = []
    for left, slash, name, right in _TAG.findall(text):
        parts = re.split(r"([_.:-])", name)
        pairs = [pair for pair in _PAIRS if not slash and set(pair).intersection(parts)]
        for opening, closing in pairs:
            halves = (
                "".join(word if part in (opening, closing) else part for part in parts) for word in (opening, closing)
            )
            found.append(ThinkingTags(*(f"{left}{half}{right}" for half in halves)))
        if not pairs:
            found.append(ThinkingTags(f"{left}{name}{right}", f"{left}/{name}{right}"))
    return found
