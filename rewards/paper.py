"""The two graders of arXiv 2603.24472's code, by their rules and not by their code: one graded its training, another its evaluations.

They disagree with each other and with ``math_answer`` at the edges, so a number of that paper compares with ours only under the same one.
Each verdict of the published code on the golden texts is kept in ``onpolicy/experiments/parity``.
"""

from __future__ import annotations

import re
import threading

from .deadline import call_with_deadline
from .paper_equality import same

TAIL = 100
"""Characters at the end of an answer in which the training grader looks for its box."""
SECONDS = 5
"""Longest time that math-verify may take over one answer."""


def paper_train_answer(completion: str, answer: str) -> bool:
    """The last ``\\boxed{}`` begun within the last 100 characters, equal to the letter or for math-verify.

    math-verify reads the bare texts, without ``$`` or ``\\boxed{}`` around them, and so finds little more than numbers and simple
    fractions: another spelling of a pair, a polynomial or a letter is wrong, and ``y=2x`` equals ``y=2x+3``, because it reads 2 in both.
    An answer that is boxed earlier, or in a box that does not close, is wrong. The reward of the training runs of arXiv 2603.24472.
    """
    box = _closed_box(completion[-TAIL:])
    if box is None:
        return False
    return box == answer or verified(box, answer)


def paper_eval_answer(completion: str, answer: str) -> bool:
    """What stands behind the last "boxed", compared as graders in the line of Hendrycks' MATH and ToRA do: the evaluations of
    arXiv 2603.24472.

    Equal as text after clean-up; or as a choice; or as numbers to 1e-4, also where one is a hundred times the other (per cent);
    or element by element; or as equations; or symbolically. Where the thinking is complete only what follows it counts. A box that
    does not close is read to the end; what is not boxed is wrong.
    """
    given = _last_box(completion)
    return bool(given) and same(given, answer)


def verified(given: str, answer: str) -> bool:
    """Whether math-verify reads both texts and finds them equal; what cannot be read, or takes too long, is different."""
    if threading.current_thread() is threading.main_thread():
        return _verify(given, answer)
    # its time limit is a signal, which only a main thread can have: that of another process; the deadline is for what ignores signals
    return (
        call_with_deadline(f"{__name__}:verified", [given, answer], seconds=4 * SECONDS, libraries=["math_verify"])
        is True
    )


def _verify(given: str, answer: str) -> bool:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    try:
        expected, found = (parse(text, parsing_timeout=SECONDS, raise_on_error=False) for text in (answer, given))
        return bool(verify(expected, found, timeout_seconds=SECONDS, raise_on_error=False))
    except (TimeoutException, Exception):  # the first derives from BaseException
        return False


def _closed_box(text: str) -> str | None:
    """Content of the last ``\\boxed{``, or None where it does not close; ``\\{`` and ``\\}`` count as braces."""
    _, found, behind = text.rpartition("\\boxed{")
    content, closed = _to_closing_brace(behind)
    return content if found and closed else None


def _last_box(completion: str) -> str:
    """What the last "boxed" is followed by: up to the brace that closes it, else to the end; without a brace up to the next ``$``."""
    complete = re.search(r"<think>.*</think>", completion, re.DOTALL)
    text = completion[complete.end() :] if complete else completion
    _, found, behind = text.rpartition("boxed")
    if not found:
        return ""
    content = _to_closing_brace(behind[1:])[0] if behind.startswith("{") else behind.partition("$")[0].strip()
    content = re.sub(r"\n\s*", "", content).removeprefix(":")
    return content.removesuffix(".").removesuffix("/")


def _to_closing_brace(text: str) -> tuple[str, bool]:
    """The text up to the closing brace that nothing in it opened, and whether there is one."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i], True
    return text, False
