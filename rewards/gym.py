"""reasoning-gym's own verifiers, kept from running code that a model wrote: several pass an answer to ``eval`` or to sympy's parser."""

from __future__ import annotations

import builtins
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from .extract import after_thinking, extract_answer

ARITHMETIC = {"abs", "bool", "complex", "divmod", "float", "int", "len", "max", "min", "pow", "round", "sum"}
SYMPY = {
    "S",
    "sympify",
    "lambdify",
    "preview",
    "parse_expr",
    "plot",
    "test",
    "doctest",
    "init_printing",
    "init_session",
    "source",
}
"""Functions of sympy that parse text, write files or start programs."""
CALLS = SYMPY | {name for name in dir(builtins) if name[0].islower()} - ARITHMETIC


def gym_answer(completion: str, fields: Mapping[str, Any], final: str | None = None) -> float:
    """The score, 0 to 1, that the task's verifier gives the final answer; rows come from ``data: {name: gym}``.

    An answer that could call a Python function is incorrect unless it equals the reference exactly, because verifiers evaluate it.
    """
    from reasoning_gym import get_score_answer_fn

    task = fields["gym"]
    text = after_thinking(completion) if final is None else final
    found = extract_answer(text)
    answer = text.strip() if found is None else found
    if is_code(answer) and answer != task["entry"].get("answer"):
        return 0.0
    try:
        return float(get_score_answer_fn(task["task"])(answer, task["entry"]))
    except Exception:
        # some verifiers raise on text that is no answer at all (prime_factorization does); such text is incorrect
        return 0.0


def is_code(answer: str) -> bool:
    """Whether Python or sympy, reading the text, could call something that is not arithmetic.

    A call needs a parenthesis, and also a built-in name of Python, an attribute, or a string that would itself be parsed.
    """
    text = unicodedata.normalize("NFKC", answer)  # as Python reads names
    if "__" in text:
        return True
    quoted = re.search(r"""["']|\.\s*[A-Za-z_]|\\\s*\n""", text) is not None
    return "(" in text and (quoted or not CALLS.isdisjoint(re.findall(r"\w+", text)))
