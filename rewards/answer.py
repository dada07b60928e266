"""Whether the final answer is correct."""

from __future__ import annotations

import re
import threading

from .deadline import call_with_deadline
from .extract import after_thinking, extract_answer, plain_answer

SECONDS = 5
"""The longest time that one answer may take; an expression that takes longer counts as incorrect."""


_BASE = re.compile(r"([0-9A-F]+)_\{?(\d+)\}?")
"""A number and its base, as in ``52_8``."""


def math_answer(completion: str, answer: str) -> bool:
    """Whether the answer is correct as mathematics: math-verify finds it equal to the reference (``1/2``, ``0.5``, ``\\frac{1}{2}``).

    The last ``\\boxed{}`` or ``#### x`` after the thinking counts, else whatever math-verify finds there. Text that
    it cannot read is incorrect, never an error. math-verify limits its time by a signal, which exists in the main thread only;
    in other threads the work is done in a process with a deadline.
    """
    if threading.current_thread() is threading.main_thread():
        return _verify(completion, answer, SECONDS)
    return _verify_elsewhere(completion, answer)


def exact_answer(completion: str, answer: str) -> bool:
    """Whether the extracted answer equals the reference as text, apart from spaces, case, ``$`` and a final full stop."""
    found = extract_answer(completion)
    return found is not None and plain_answer(found) == plain_answer(extract_answer(answer) or answer)


def _verify(completion: str, answer: str, seconds: int | None) -> bool:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    found = extract_answer(completion)
    expected = extract_answer(answer) or answer.strip().strip("$")
    if found is not None and _BASE.fullmatch(expected):  # math-verify overlooks the base
        given = _BASE.fullmatch(found.strip("$ "))
        return given is not None and given.groups() == _BASE.fullmatch(expected).groups()  # type: ignore[union-attr]
    text = after_thinking(completion) if found is None else f"\\boxed{{{found}}}"
    try:
        gold = parse(f"\\boxed{{{expected}}}", parsing_timeout=seconds, raise_on_error=False)
        given = parse(text, parsing_timeout=seconds, raise_on_error=False)
        return bool(verify(gold, given, timeout_seconds=seconds, raise_on_error=False))
    except TimeoutException:  # derives from BaseException: nothing else would catch it
        return False


def _verify_elsewhere(completion: str, answer: str) -> bool:
    # the other process has a main thread of its own, where the signal works; the deadline is for what ignores signals
    verdict = call_with_deadline(f"{__name__}:math_answer", [completion, answer], seconds=4 * SECONDS)
    return verdict is True
