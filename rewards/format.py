"""Whether an answer has the form that was asked for."""

from __future__ import annotations

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
