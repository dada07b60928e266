"""Rewards for a stated confidence."""

from __future__ import annotations

from .answer import math_answer
from .extract import last_in_tag


def brier(
    completion: str, answer: str, final: str | None = None, *, tag: str = "confidence", offset: float = 0.0
) -> float:
    """offset - (c - r)^2 with c the stated confidence and r 1 for a correct answer, 0 for an incorrect one; offset - 1 where none is
    stated.

    RLCR (arXiv 2507.16806) adds it to correctness: the sum is largest for the likeliest answer with a confidence equal to
    its probability of being correct. The last tag counts; percentages are read too.

    Args:
        tag: name of the tag around the confidence
        offset: what a confidence that is exactly right earns; with 1 (RLCR's code) the reward lies between 0 and 1
    """
    confidence = stated_confidence(completion if final is None else final, tag=tag)
    return offset - (1.0 if confidence is None else (confidence - float(math_answer(completion, answer, final))) ** 2)


def stated_confidence(completion: str, *, tag: str = "confidence", percent: bool = True) -> float | None:
    """The confidence in the last such tag, from 0 to 1; None where the tag holds no number in that range.

    Args:
        completion: the text
        tag: name of the tag around the confidence
        percent: whether ``80%`` is .8; otherwise it is none
    """
    text = (last_in_tag(completion, tag) or "").strip()
    in_percent = percent and text.endswith("%")
    try:
        confidence = float(text.removesuffix("%") if in_percent else text) / (100.0 if in_percent else 1.0)
    except ValueError:
        return None
    return confidence if 0.0 <= confidence <= 1.0 else None
