"""The two graders of arXiv 2603.24472's code, by their rules and not by their code: one graded its training, another its evaluations.

They disagree with each other and with ``math_answer`` at the edges, so a number of that paper compares with ours only under the same one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from .answer import math_answer
from .deadline import call_with_deadline
from .extract import boxed

TAIL = 100
"""Characters at the end of an answer in which the training grader looks for its box."""
CLOSE = 1e-4
"""Relative difference below which numbers are equal."""
SECONDS = 5.0
"""Longest time a symbolic comparison may take."""
CHOICES = "ABCDE"


def paper_train_answer(completion: str, answer: str) -> bool:
    """The last complete ``\\boxed{}`` within the last 100 characters, equal to the letter or for math-verify.

    Unlike ``math_answer`` a right answer that is boxed earlier, or is not boxed, is wrong. The reward of the training runs of
    arXiv 2603.24472.
    """
    boxes = boxed(completion[-TAIL:])
    if not boxes:
        return False
    return boxes[-1].strip() == answer.strip() or math_answer(f"\\boxed{{{boxes[-1]}}}", answer)


def paper_eval_answer(completion: str, answer: str) -> bool:
    """What stands behind the last "boxed", compared as graders in the line of Hendrycks' MATH and ToRA do: the evaluations of
    arXiv 2603.24472.

    Equal as text after clean-up; or as a choice; or as numbers to 1e-4, also where one is a hundred times the other (per cent);
    or element by element; or as equations; or symbolically. Where the thinking is complete only what follows it counts. Unlike
    ``math_answer`` it forgives a factor of 100, and takes nothing that is not boxed; units are forgiven where they stand in
    ``\\text{}`` or the like.
    """
    given = _last_box(completion)
    return given is not None and same(given, answer)


def _last_box(completion: str) -> str | None:
    complete = re.search(r"<think>.*</think>", completion, re.DOTALL)
    text = completion[complete.end() :] if complete else completion
    _, found, behind = text.rpartition("boxed")
    if not found or not behind:
        return None
    if behind.lstrip().startswith("{"):
        boxes = boxed("\\boxed" + behind)
        return boxes[0] if boxes else None
    return behind.partition("$")[0].strip() or None


def same(given: str, expected: str) -> bool:
    """The comparison itself; text that cannot be read is different, never an error."""
    one, other = clean(given), clean(expected)
    if not one or not other:
        return False
    tests: tuple[Callable[[str, str], bool | None], ...] = (
        _as_text, _as_choices, _as_numbers, _as_lists, _as_matrices, _as_equations, _as_expressions,
    )  # fmt: skip
    for test in tests:
        verdict = test(one, other)
        if verdict is not None:
            return verdict
    return False


_REMOVED = re.compile(
    r"\\left|\\right|\\!|\\,|\\;|\\:|(?<!\\)\\ |\\\$|\$|\\%|%|\^\{?\\circ\}?|\\degree|°|\\(?:math)?rm(?=\{)|\\displaystyle|~|\s"
)
_UNIT = re.compile(r"\\(?:text|mbox|textbf|mathrm)\{\s*(?!and\b|or\b)[^{}]*\}\s*(?:\^\{?\d\}?)?$")
_TEXT = re.compile(r"\\(?:text|mbox|textbf|mathrm|mathbf)\{([^{}]*)\}")
_LETTER_EQUALS = re.compile(r"^[A-Za-z](?:\([a-z]\))?=(?!.*=)|^[a-z]\\in(?![a-z])")


def clean(text: str) -> str:
    """Without spacing, delimiters, units, currency and per cent, in one spelling of fractions and roots."""
    text = text.replace("\n", " ").strip().rstrip(".")
    for was, now in (("tfrac", "frac"), ("dfrac", "frac"), ("cfrac", "frac"), ("\\infinity", "\\infty"), ("\\neq", "\\ne"),
                     ("\\leq", "\\le"), ("\\geq", "\\ge"), ("\\{", "{"), ("\\}", "}"), ("−", "-"), ("\\cdot", "\\times")):  # fmt: skip
        text = text.replace(was, now)
    bare = _UNIT.sub("", text).strip()
    text = _TEXT.sub(r"\1", bare if bare else text)
    text = _REMOVED.sub("", text)
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    if text.lower() in ("inf", "+inf", "infinity", "+\\infty"):
        text = "\\infty"
    text = _LETTER_EQUALS.sub("", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(\d)\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\{[^{}]*\})(\w)", r"\1{\2}", text)
    text = re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<!\d)\.(\d)", r"0.\1", text)
    text = re.sub(r"(\d+)\.0+(?!\d)", r"\1", text)
    return re.sub(r"(\.\d*[1-9])0+(?!\d)", r"\1", text)


def _as_text(one: str, other: str) -> bool | None:
    return True if one.casefold() == other.casefold() else None


def _as_choices(one: str, other: str) -> bool | None:
    """Where a letter is expected: the last capital letter of the choices that stands by itself."""
    if len(other) != 1 or other not in CHOICES:
        return None
    letters = re.findall(rf"(?<![A-Za-z])[{CHOICES}](?![A-Za-z])", one)
    return bool(letters) and letters[-1] == other


def number(text: str) -> float | None:
    """A decimal number or a simple fraction; None for anything else."""
    fraction = re.fullmatch(r"(-?)\\frac\{(-?\d+(?:\.\d+)?)\}\{(-?\d+(?:\.\d+)?)\}", text)
    try:
        if fraction:
            value = float(fraction[2]) / float(fraction[3])
            return -value if fraction[1] else value
        return float(text) if re.fullmatch(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?", text) else None
    except (ZeroDivisionError, OverflowError):
        return None


def _as_numbers(one: str, other: str) -> bool | None:
    given, expected = number(one), number(other)
    if given is None or expected is None:
        return None
    return any(math.isclose(given, factor * expected, rel_tol=CLOSE) for factor in (1.0, 0.01, 100.0))


def _as_lists(one: str, other: str) -> bool | None:
    """Tuples, intervals, sets and bare lists: as many elements, each the same; the kind of bracket does not count."""
    given, expected = parts(_unbracketed(one)), parts(_unbracketed(other))
    if len(expected) < 2 and len(given) < 2:
        bare = _unbracketed(one), _unbracketed(other)
        return same(*bare) if bare != (one, other) and all(bare) else None
    return len(given) == len(expected) and all(same(a, b) for a, b in zip(given, expected, strict=True))


def _unbracketed(text: str) -> str:
    """Without one pair of brackets around all of it."""
    if len(text) < 2 or text[0] not in "([{" or text[-1] not in ")]}":
        return text
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and i < len(text) - 1:
            return text
    return text[1:-1]


def parts(text: str) -> list[str]:
    """What commas outside of all brackets separate."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found


def _as_matrices(one: str, other: str) -> bool | None:
    rows = [_rows(text) for text in (one, other)]
    if rows[0] is None or rows[1] is None:
        return None if rows == [None, None] else False
    flat = [[cell for row in r for cell in row] for r in rows if r is not None]
    shapes = [[len(row) for row in r] for r in rows if r is not None]
    return shapes[0] == shapes[1] and all(same(a, b) for a, b in zip(*flat, strict=True))


def _rows(text: str) -> list[list[str]] | None:
    inside = re.fullmatch(r"\\begin\{([pbv]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", text)
    return [row.split("&") for row in inside[2].split("\\\\") if row] if inside else None


def _as_equations(one: str, other: str) -> bool | None:
    """Of the same difference of their sides, or of its negative; an equation and a bare value by its right side."""
    sides = [text.split("=") for text in (one, other)]
    if max(map(len, sides)) == 1 or max(map(len, sides)) > 2:
        return None
    if len(sides[0]) == len(sides[1]):
        gaps = [f"({left})-({right})" for left, right in sides]
        return bool(_as_expressions(*gaps) or _as_expressions(gaps[0], f"-({gaps[1]})"))
    equation, value = (sides[0], other) if len(sides[0]) == 2 else (sides[1], one)
    return same(equation[1], value) if len(equation[0]) <= 2 else None


def _as_expressions(one: str, other: str) -> bool | None:
    """In a process of its own with a deadline: simplifying may take for ever, and this may be any thread."""
    return call_with_deadline(f"{__name__}:equal_expressions", [one, other], seconds=SECONDS) is True


def equal_expressions(one: str, other: str) -> bool:
    """Whether sympy reads both and finds no difference, symbolically or in numbers."""
    import sympy
    from latex2sympy2_extended import latex2sympy

    try:
        first, second = latex2sympy(one), latex2sympy(other)
        if first == second:
            return True
        difference = sympy.simplify(first - second)
        if difference == 0:
            return True
        return not difference.free_symbols and math.isclose(
            float(sympy.N(first)), float(sympy.N(second)), rel_tol=CLOSE
        )
    except Exception:  # what cannot be read, or compared, is different
        return False
