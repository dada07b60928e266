"""Whether the final answer is correct."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from .equality import equal_answers
from .extract import extract_answer, marked_answer, plain_answer


def math_answer(completion: str, answer: str, final: str | None = None) -> bool:
    """Whether the answer is correct as mathematics: it equals the reference (``1/2``, ``0.5``, ``\\frac{1}{2}``) by ``equal_answers``.

    The answer is what ``extract_answer`` finds in ``final``, the part after the thinking as the framework tells it, or after the last
    thinking tag of a completion that is graded by itself. Text that states no answer, or cannot be read, is incorrect, never an error.
    """
    found = extract_answer(completion if final is None else final)
    return found is not None and any(equal_answers(found, form) for form in _expected(answer))


def exact_answer(completion: str, answer: str, final: str | None = None) -> bool:
    """Whether the extracted answer equals the reference as text, apart from spaces, case, ``$`` and a final full stop."""
    found = extract_answer(completion if final is None else final)
    return found is not None and plain_answer(found) in map(plain_answer, _expected(answer))


def _expected(answer: object) -> list[str]:
    return [marked_answer(form) or form for form in accepted_forms(answer)]


NO_ANSWER = frozenset(
    ("proof", "notfound", "not found", "see solution", "see the solution", "n/a", "nan", "null", "todo", "no answer", "omitted")
)  # fmt: skip
"""What datasets write where a problem has no final answer."""
MAX_WORDS = 12
"""Words of the longest reference: more is a sentence or a worked solution, which no final answer equals."""


def accepted_forms(reference: object) -> list[str]:
    """The texts that a reference accepts, any of which is correct; empty where it holds none.

    A list, or a text that holds a JSON list of texts (``["0.5", "1/2"]``), lists the accepted forms of one answer, not its parts.
    A list of numbers in a text is a formula, unless it has one element. NaN, infinite numbers, bytes and mappings hold no answer.
    """
    if isinstance(reference, bool) or reference is None:
        return [] if reference is None else [str(reference)]
    if isinstance(reference, int | float):
        return [str(reference)] if math.isfinite(reference) else []
    if isinstance(reference, list | tuple):
        return [form for item in reference for form in accepted_forms(item)]
    if not isinstance(reference, str):
        return []
    held = _json(reference)
    if isinstance(held, dict) or (
        isinstance(held, list) and (len(held) == 1 or all(isinstance(item, str) for item in held))
    ):
        return accepted_forms(held)
    return [reference.strip()] if reference.strip() else []


def readable(reference: object) -> bool:
    """Whether ``math_answer`` can find any answer equal to this reference.

    It can for numbers, formulas, lists of accepted forms, and short texts such as ``Friday`` or ``no solution``, which are compared as
    text. It cannot for nothing at all, NaN and infinities, mappings, what stands for a missing answer (``proof``, ``notfound``,
    ``see solution``), and running text.
    """
    return any(_says_something(form) for form in accepted_forms(reference))


def _says_something(form: str) -> bool:
    found = marked_answer(form) or form
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+", " ", found))
    plain = " ".join(found.casefold().strip(" .$!").split())
    return bool(re.search(r"\w|\\", plain)) and plain not in NO_ANSWER and len(words) <= MAX_WORDS


def _json(text: str) -> Any:
    """The list or mapping that a text holds; None for any other text."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(text) or None
    except (ValueError, RecursionError):
        return None
