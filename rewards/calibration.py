"""Rewards for a stated confidence."""

from __future__ import annotations

import re

from .answer import math_answer


def brier(completion: str, answer: str, *, tag: str = "confidence") -> float:
    """-(c - r)^2 with c the stated confidence and r 1 for a correct answer, 0 for an incorrect one; -1 where none is stated.

    RLCR (arXiv 2507.16806) adds it to correctness: the sum is largest for the likeliest answer with a confidence equal to
    its probability of being correct. The last tag counts; percentages are read too.

    Args:
        tag: name of the tag around the confidence
    """
    confidence = stated_confidence(completion, tag=tag)
    return -1.0 if confidence is None else -((confidence - float(math_answer(completion, answer))) ** 2)


def stated_confidence(completion: str, *, tag: str = "confidence") -> float | None:
    """The confidence in the last such tag, from 0 to 1; None where the tag holds no number in that range."""
    found = re.findall(rf"<{tag}>\s*([0-9]*\.?[0-9]+)\s*(%?)\s*</{tag}>", completion)
    if not found:
        return None
    number, percent = found[-1]
    confidence = float(number) / (100.0 if percent else 1.0)
    return confidence if confidence <= 1.0 else None
