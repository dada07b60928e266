"""Whether an answer has the form that was asked for."""

from __future__ import annotations

import re

from .calibration import stated_confidence
from .extract import boxed


def boxed_format(final: str) -> bool:
    """Whether exactly one closed, non-empty ``\\boxed{}`` follows the thinking."""
    found = boxed(final)
    return len(found) == 1 and bool(found[0].strip())


def thinking_format(completion: str, *, open_tag: str = "<think>", close_tag: str = "</think>") -> bool:
    """Whether there is one thinking span, closed once, and an answer after it; the template may have opened the span.

    Args:
        open_tag: the tag that opens the thinking
        close_tag: the tag that closes it
    """
    before, closed, after = completion.partition(close_tag)
    opened_at_start = before.count(open_tag) == 0 or (
        before.count(open_tag) == 1 and before.lstrip().startswith(open_tag)
    )
    return bool(closed) and opened_at_start and close_tag not in after and open_tag not in after and bool(after.strip())


def tagged_format(
    completion: str,
    *,
    tags: list[str] = ["answer", "analysis", "confidence"],  # noqa: B006 read, never changed
    confidence: str | None = "confidence",
    close_tag: str = "</think>",
) -> bool:
    """After the thinking the tags, each closed, in this order and to the end, with nothing but white space between them.

    The format that RLCR (arXiv 2507.16806) rewards: thinking, answer, analysis of the doubt, and a confidence from 0 to 1.

    Args:
        tags: names of the tags, at least one
        confidence: name of the tag that must hold a number from 0 to 1 ("80%" is none); null: no tag has to
        close_tag: the tag that closes the thinking
    """
    if not tags:
        raise ValueError("tagged_format: got no tags, expected at least one")
    place = 0
    for closed, opened in zip([close_tag, *(f"</{tag}>" for tag in tags)], tags, strict=False):
        found = re.compile(rf"{re.escape(closed)}\s*<{re.escape(opened)}>").search(completion, place)
        if found is None:
            return False
        place = found.end()
    end = f"</{tags[-1]}>"
    if not completion[place:].rstrip().endswith(end):
        return False
    return confidence is None or stated_confidence(completion, tag=confidence, percent=False) is not None
