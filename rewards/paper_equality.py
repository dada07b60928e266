"""When arXiv 2603.24472's evaluations take two answers for equal: rules that Hendrycks' MATH, ToRA and their descendants share.

A text is cleaned, then a series of comparisons is tried; one that finds the answers equal decides. What is lenient here, or odd, is
so there: the kind of bracket does not count, numbers may differ by a factor of 100, units and "x=" fall away.
"""

from __future__ import annotations

import math
import re

from .deadline import call_with_deadline

CLOSE = 1e-4
"""Absolute difference up to which numbers are equal."""
SECONDS = 5.0
"""Longest time a comparison may take, after the libraries are loaded."""
LIBRARIES = ["sympy", "latex2sympy2_extended"]
MAX_DEPTH = 8
"""Lists within lists that are compared element by element; deeper ones are different."""
CHOICES = "ABCDE"

UNITS = (
    "m|cm|mm|km|dm|metre|meter|mtr|mt|inch|inches|feet|ft|yard|mile|acre|hectare|sq|square|cubic|cube|cu|cc|unit"
    "|g|gm|kg|lb|t|l|lt|liter|litre|gal|gallon|ohm"
    "|s|sec|second|min|minute|h|hr|hour|day|month|yr|year|am|pm|noon"
    "|mph|kmph|kmh|degree|deg|c|per|percent|ratio|number|more|less|a|d|o|th|st|by|are|ab|bc|way|east|west"
    "|coin|rupee|rs|rd|profit|loss|gain|excess|increase|decrease|rise|pure"
    "|apple|toy|tile|pie|man|men|woman|women|soldier|monkey|prime|mark|rounds"
)
"""Words, and their plurals, that fall away where they stand alone: single letters too, be they variables, and ``\\pm``."""
_UNIT = re.compile(rf"(?<!\w)(?:{UNITS})s?(?!\w)")


def same(given: str, expected: str) -> bool:
    """Whether an answer equals the expected one; text that cannot be read is different, never an error."""
    one, other = (clean(clean(text)) for text in (given, expected))
    verdict = _quickly(one, other)
    if verdict is None:  # in a process with a deadline: simplifying may take for ever, and this may be any thread
        target = f"{__name__}:equal"
        return call_with_deadline(target, [one, other], seconds=SECONDS, libraries=LIBRARIES) is True
    return verdict


_SPELLINGS = (
    ("\n", ""), ("\\!", ""), ("bmatrix", "pmatrix"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\neq", "\\ne"), ("\\leq", "\\le"),
    ("\\geq", "\\ge"), ("\\left", ""), ("\\right", ""), ("\\{", "{"), ("\\}", "}"),
)  # fmt: skip
_FALL_AWAY = re.compile(r"\^\{\\circ\}|\^\\circ|\\\$|\$|\\\(|\\\)")
_RANGES = re.compile(r"[xyz](?:=|\\in|\\to)")


def clean(text: str) -> str:
    """Without spacing, delimiters, units, currency and per cent, in one spelling of fractions and roots.

    The order counts: a unit is found while its spaces are there, and ``\\text{C}`` is no unit of anything.
    """
    text = text.strip().rstrip(".")
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text).replace("\\end{array}", "\\end{pmatrix}")
    for was, now in _SPELLINGS:
        text = text.replace(was, now)
    text = _without_units((re.sub(r"\\text\{.*?\}$", "", text) if text.endswith("}") else text).strip() or text)
    text = _in_closed(r"\\text\{(.*?)\}", r"\1", _FALL_AWAY.sub("", text))
    text = _RANGES.sub("", text).replace("\\emptyset", "{}").replace("(-\\infty,\\infty)", "\\mathbb{R}")
    text = re.sub(r"\\?%", "", text).replace(" .", " 0.").replace("{.", "{0.").replace("infinity", "\\infty")
    text = text if "\\infty" in text else text.replace("inf", "\\infty")
    text = _in_closed(r"\\mbox\{.*?\}", "", text.replace("and", "").replace("\\mathbf", ""))
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d)\.0*(?=\D|$)", r"\1", text)
    text = f"0{text}" if text.startswith(".") else text
    sides = text.split("=")
    return _fractions(sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text)


def _in_closed(pattern: str, replacement: str, text: str) -> str:
    """``re.sub`` of a pattern that ends with a brace, in one pass: behind the last closing brace there is nothing to find."""
    end = text.rfind("}") + 1
    return re.sub(pattern, replacement, text[:end]) + text[end:]


def _without_units(text: str) -> str:
    """Without the words of UNITS, unless nothing else is there; twice, because one may stand before another."""
    for _ in range(2):
        text = _UNIT.sub("", text) or text
    return text


def _fractions(text: str) -> str:
    """``\\sqrt3``, ``\\frac12`` and ``1/2`` with all their braces, and no spaces."""
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    above, slash, below = text.partition("/")
    plain = (
        slash and "/" not in below and all("sqrt" in part or re.fullmatch(r"-?\d+", part) for part in (above, below))
    )
    return f"\\frac{{{above}}}{{{below}}}" if plain else text


def _quickly(one: str, other: str) -> bool | None:
    """The verdict where text or numbers decide; None where they do not."""
    if one.lower() == other.lower() or (other in tuple(CHOICES) and _choice(one) == other):
        return True
    given, expected = number(one), number(other)
    if given is not None and expected is not None:
        return any(close(given, factor * expected) for factor in (0.01, 1.0, 100.0))
    if not one:
        return False
    return True if _without_brackets(one, other) else None


def equal(one: str, other: str, depth: int = 0) -> bool:
    """Whether two cleaned texts are equal; runs in a process that can be killed."""
    verdict = _quickly(one, other)
    if verdict is not None or depth > MAX_DEPTH:
        return bool(verdict)
    if "pmatrix" in one and "pmatrix" not in other:
        return False
    from . import paper_expressions as expressions

    pairs = _elements(one, other) or _cells(one, other)
    if pairs and all(equal(a, b, depth + 1) for a, b in pairs):
        return True
    equations, sides = (one.count("="), other.count("=")), (one.split("="), other.split("="))
    if equations == (1, 1):
        first, second = (f"{left} - ({right})" for left, right in sides)
        if expressions.equal_expressions(first, second) or expressions.equal_expressions(f"-({first})", second):
            return True
    is_named_value = sorted(equations) == [0, 1] and len(sides[equations.index(1)][0]) <= 2
    if is_named_value and equal(sides[0][-1], sides[1][-1], depth + 1):
        return True
    return expressions.equal_expressions(one, other)


def number(text: str) -> float | None:
    """A decimal number, commas left out; None for anything else."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value


def close(one: float, other: float) -> bool:
    return math.isclose(one, other, abs_tol=CLOSE)


def _choice(text: str) -> str | None:
    """The last letter of the choices that stands by itself, small or capital."""
    letters = re.findall(rf"\b[{CHOICES}]\b", text.upper())
    return letters[-1] if letters else None


def _without_brackets(one: str, other: str) -> bool:
    """Equal as text but for braces, parentheses, and square brackets around all that the other does not have round."""
    for opening, closing, unlike in (("[", "]", "("), ("(", ")", "[")):
        if one.startswith(opening) and one.endswith(closing) and not other.startswith(unlike):
            one, other = one.strip("[]()"), other.strip("[]()")
            break
    one, other = (re.sub(r"[{}()]", "", text).lower() for text in (one, other))
    return one == other


def _elements(one: str, other: str) -> list[tuple[str, str]]:
    """Pairs of elements of two tuples, intervals or lists, split at every comma; none where their numbers differ."""
    if not all(re.match(r"[(\[].+[)\]]", text) for text in (one, other)):
        return []
    lists = [text[1:-1].split(",") for text in (one, other)]
    return list(zip(*lists, strict=True)) if len(lists[0]) == len(lists[1]) else []


def _cells(one: str, other: str) -> list[tuple[str, str]]:
    """Pairs of cells of two matrices; none where they are no matrices, or of different shape."""
    inside = [re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", text) for text in (one, other)]
    if inside[0] is None or inside[1] is None:
        return []
    rows = [[row.split("&") for row in matrix[1].split("\\\\") if row] for matrix in inside if matrix]
    if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return []
    return list(zip(*([cell for row in matrix for cell in row] for matrix in rows), strict=True))
