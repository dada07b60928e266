"""When two final answers are equal: one rule for rewards, contexts and votes.

Both are brought into one notation; what the expected answer is decides how they are compared: a letter of a choice, words, a number with or
without its unit, a list, set, point, interval or matrix, part by part, or a relation. What is left are formulas, for sympy.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction

from .deadline import call_with_deadline, time_limit
from .notation import ROW, clean, without_commas
from .parts import AnswerList, as_answer_list, split_parts
from .quantities import (
    FUNCTIONS,
    Number,
    choice_letter,
    chosen_letter,
    is_text,
    read_based,
    read_number,
    same_labels,
    same_number,
    split_unit,
    text_key,
    units_differ,
)  # fmt: skip

SECONDS = 5
"""The longest time that one comparison may take; one that takes longer finds the answers different."""
LIBRARIES = ["sympy", "math_verify", "latex2sympy2_extended.latex2sympy2"]
LONGEST = 10_000
"""Characters of the longest answer that is compared other than as text."""
MOST_PARTS = 64
"""Parts of the longest list that is compared in any order."""
DEEPEST = 8
"""Lists within lists that are compared part by part."""


def equal_answers(given: str, expected: str) -> bool:
    """Whether a given answer equals the expected one. What cannot be read, or takes longer than ``SECONDS``, is different, never an error.

    The order of lists and sets is free, that of points is not; brackets of intervals count; ``x = 5`` equals 5; a unit may be left out, but
    centimetres are no metres; 25% equals 25 and 0.25; numbers are equal exactly, and a decimal of six digits or more equals what
    rounds to it; a choice is read off its letter; words, and labels such as ``e4 e5``, are compared as text.
    """
    one, other = _cleaned(given[:LONGEST]), _cleaned(expected[:LONGEST])
    verdict = _at_once(one, other)
    if verdict is not None:
        return verdict
    if threading.current_thread() is threading.main_thread():
        return time_limit(matches, one, other, seconds=SECONDS, libraries=LIBRARIES) is True
    target = f"{__name__}:matches"
    return call_with_deadline(target, [one, other], seconds=SECONDS, libraries=LIBRARIES) is True


_cleaned = functools.lru_cache(maxsize=4096)(clean)


def _at_once(one: str, other: str) -> bool | None:
    """The verdict where text, letters or numbers decide; None where structure or sympy has to."""
    if not one or not other:
        return False
    if _compact(one) == _compact(other):
        return True
    letter = choice_letter(other)
    if letter is not None:
        return chosen_letter(one) == letter
    labels = same_labels(one, other)
    if labels is not None:
        return labels
    if is_text(other):
        return _same_text(one, other)
    based = read_based(one), read_based(other)
    if based[1] is not None:  # a number without its base is another number
        return based[0] == based[1]
    given, expected = split_unit(without_commas(one)), split_unit(without_commas(other))
    numbers = Number(Fraction(based[0][0]), 0) if based[0] else read_number(given[0]), read_number(expected[0])
    if numbers[0] is None or numbers[1] is None:
        return False if is_text(one) else None
    if units_differ(given[1], expected[1]):
        return False
    if same_number(numbers[0], numbers[1]):
        return True
    hundred = {("%", ""): (1, 100), ("", "%"): (100, 1)}.get((given[1], expected[1]))  # 25% and 0.25
    return hundred is not None and numbers[0].value * hundred[0] == numbers[1].value * hundred[1]


def _compact(text: str) -> str:
    return text.replace(" ", "")


def _same_text(one: str, other: str) -> bool | None:
    key = text_key(other)
    if text_key(one) == key:
        return True
    if key in ("yes", "no", "true", "false"):  # with a reason behind it
        return re.match(rf"{key}\b *[,.;:-]", one.casefold()) is not None
    return None if "=" in one or re.search(r",| and | or ", other) else False


def matches(one: str, other: str) -> bool:
    """Whether two cleaned answers are equal, with ``1,234`` as one number or as two; in the main thread, or in a process of its own."""
    joined = without_commas(one), without_commas(other)
    if _same(*joined, 0):
        return True
    return joined != (one, other) and not any(map(_GROUPED.fullmatch, (one, other))) and _same(one, other, 0)


_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+")


def _same(one: str, other: str, depth: int) -> bool:
    one, other = (_condition(_system(_POINT.sub("", text.strip()))) for text in (one, other))
    verdict = _at_once(one, other)
    if verdict is not None or depth > DEEPEST:
        return bool(verdict)
    if "\\begin" in one and "\\begin" in other:
        return _same_matrix(one, other, depth)
    if len({_ordered_symbol(one), _ordered_symbol(other)} - {""}) > 1:  # x > 2 and y > 2
        return False
    first, second = as_answer_list(_as_interval(one)), as_answer_list(_as_interval(other))
    if (len(first.items) == 1) != (len(second.items) == 1):  # (x, y) = (1, 2)
        value = _unnamed(one) if len(first.items) == 1 else one
        expected = _unnamed(other) if len(second.items) == 1 else other
        if (value, expected) != (one, other):
            return _same(value, expected, depth + 1)
    if "\\cup" in one or "\\cup" in other:
        return _in_any_order(_union(first), _union(second), depth)
    if len(first.items) == len(second.items) == 1 and "\\{" not in (first.opening, second.opening):
        inside, inner = first.items[0], second.items[0]
        return _same(inside, inner, depth + 1) if (inside, inner) != (one, other) else _same_atom(one, other, depth)
    return _same_list(first, second, depth)


_POINT = re.compile(r"^[A-Z]'?(?: ?_ ?\d)? ?(?=\([^()]*,[^()]*\)$)")
"""The name of a point in front of its coordinates."""


_SYSTEM = re.compile(
    r"\\?\{? ?\\begin ?\{(?:(aligned|align\*?)|cases|gathered|array\} ?\{ ?l+ ?)\}(.*)\\end ?\{[a-z]+\*?\}$", re.DOTALL
)
_COMPOUND = re.compile(r"\d[\d.]* [A-Za-z]+(?:(?: and|,)? \d[\d.]* [A-Za-z]+)+")


def _system(text: str) -> str:
    """The lines of a system of equations, or the parts of a quantity (2 hours 30 minutes), as a list; any other text as it is."""
    found = _SYSTEM.match(text)
    if found and (found.group(1) or "&" not in found.group(2)):
        rows = (row.replace("&", "").strip(" ,") for row in found.group(2).split(ROW))
        return ", ".join(row for row in rows if row)
    return (
        re.sub(r"(?<=[a-zA-Z]),? (?=\d)", " and ", text) if _COMPOUND.fullmatch(text) and " and " not in text else text
    )


_BUILDER = re.compile(
    r"\\\{ ?([A-Za-z]) ?(?:\\in ?(?:\\mathbb ?\{R\}|R\b) ?)?(?:\\mid(?![A-Za-z])|\||:) ?(.*)\\\}$", re.DOTALL
)
_REAL = re.compile(r"(?:,|;| and)? ?[A-Za-z] ?\\in ?(?:\\mathbb ?\{R\}|R)$")


def _condition(text: str) -> str:
    """The inequalities by which a set of real numbers is written (``\\{x \\mid x > 2\\}``); any other text as it is."""
    found = _BUILDER.match(text)
    if found is None:
        return text
    symbol, condition = found.groups()
    condition = _REAL.sub("", condition).strip()
    each = split_parts(condition, (" or ",))[0]
    return condition if all(_ordered_symbol(part) == symbol for part in each) else text


def _union(part: AnswerList) -> list[str]:
    pieces = part.items if not part.opening else [f"{part.opening}{','.join(part.items)}{part.closing}"]
    return [_as_interval(piece) for item in pieces for piece in split_parts(item, ("\\cup",))[0]]


def _same_list(one: AnswerList, other: AnswerList, depth: int) -> bool:
    if len(one.items) != len(other.items):
        return False
    brackets = (one.opening + one.closing, other.opening + other.closing)
    names = [{_name(item) for item in part.items} for part in (one, other)]
    ordered = any(b not in ("", "\\{\\}") for b in brackets)
    if ordered and all(brackets) and brackets[0] != brackets[1]:
        return False
    named = [len(found - {""}) > 1 for found in names]
    units = [{split_unit(item)[1]: item for item in part.items} for part in (one, other)]
    if (
        not ordered and units[0].keys() == units[1].keys() and len(units[0]) == len(one.items) > 1
    ):  # 15 apples and 3 pears
        return all(_same(item, units[1][unit], depth + 1) for unit, item in units[0].items())
    if not ordered and _same_variable(names):
        return _in_any_order(list(map(_unnamed, one.items)), list(map(_unnamed, other.items)), depth)
    if ordered or named[0] != named[1]:
        return all(_same(_unnamed(a), _unnamed(b), depth + 1) for a, b in zip(one.items, other.items, strict=True))
    return _in_any_order(one.items, other.items, depth)


def _same_variable(names: Sequence[set[str]]) -> bool:
    """Whether one list numbers the values of a variable and the other does not: x_1 = 1, x_2 = 2, and x = 2, x = 1."""
    variables = {name.partition("_")[0] for found in names for name in found}
    return len(variables) == 1 and variables != {""} and min(map(len, names)) == 1


def _in_any_order(one: Sequence[str], other: Sequence[str], depth: int) -> bool:
    if len(one) != len(other) or len(one) > MOST_PARTS:
        return False
    left = list(other)
    for item in one:
        found = next((i for i, candidate in enumerate(left) if _same(item, candidate, depth + 1)), None)
        if found is None:
            return False
        del left[found]
    return True


_MATRIX = re.compile(r"^[(\[ ]*\\begin ?(?:\{([a-zA-Z]*)matrix\*?\}|\{array\} ?\{[^}]*\})")


def _same_matrix(one: str, other: str, depth: int) -> bool:
    """Cell by cell; the brackets of a matrix do not count, the bars of a determinant do."""
    kinds, tables = [], []
    for text in (one, other):
        start, end = _MATRIX.match(_value_side(text)), text.rfind("\\end")
        if start is None or end < 0:
            return False
        kinds.append(start.group(1) in ("v", "V"))
        rows = _value_side(text)[start.end() :].rpartition("\\end")[0].split(ROW)
        tables.append([[cell.strip() for cell in row.split("&")] for row in rows if row.strip()])
    if kinds[0] != kinds[1] or [len(row) for row in tables[0]] != [len(row) for row in tables[1]]:
        return False
    cells = ([cell for row in table for cell in row] for table in tables)
    return all(_same(a, b, depth + 1) for a, b in zip(*cells, strict=True))


_SIGNS = ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx", "\\equiv", "==", "<=", ">=")
_FLIPPED = {"<": ">", "\\le": "\\ge", ">": "<", "\\ge": "\\le"}


def _relation(text: str) -> tuple[list[str], list[str]]:
    """The sides of a relation, and the signs between them."""
    parts, signs = split_parts(text, _SIGNS)
    return parts, [{"==": "=", "<=": "\\le", ">=": "\\ge"}.get(sign, sign) for sign in signs]


def _value_side(text: str) -> str:
    return _relation(text)[0][-1]


def _as_interval(text: str) -> str:
    """``1 < x \\le 3`` as ``(1,3]``, ``x > 2`` as ``(2,\\infty)``, ``x \\in S`` as S, the reals as an interval; any other text as it is."""
    parts, signs = _relation(text)
    if signs == ["\\in"] and _is_symbol(parts[0]):
        return _as_interval(parts[1])
    if _compact(text) == "\\mathbb{R}":
        return "(-\\infty,\\infty)"
    if not signs or any(sign not in _FLIPPED for sign in signs) or len(signs) > 2:
        return text
    if signs[0] in (">", "\\ge"):
        parts, signs = parts[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    if any(sign not in ("<", "\\le") for sign in signs):
        return text
    if len(signs) == 2:
        low, middle, high = parts
    else:
        low, middle, high = ("-\\infty", *parts) if _is_symbol(parts[0]) else (*parts, "\\infty")
    if not _is_symbol(middle) or _is_symbol(low) or _is_symbol(high):
        return text
    opens = "(" if (len(signs) == 1 and low == "-\\infty") or signs[0] == "<" else "["
    closes = ")" if (len(signs) == 1 and high == "\\infty") or signs[-1] == "<" else "]"
    return f"{opens}{low},{high}{closes}"


def _ordered_symbol(text: str) -> str:
    """The variable of an inequality; empty for other texts."""
    return (
        next((part for part in map(_compact, _relation(text)[0]) if _is_symbol(part)), "")
        if _as_interval(text) != text
        else ""
    )


def _is_symbol(text: str) -> bool:
    return (
        re.fullmatch(r"(?!\\infty|\\pi|e$|i$)(?:[A-Za-z]|\\[a-z]+)(?: ?_ ?(?:\w|\{\w+\}))?'*", text.strip()) is not None
    )


def _name(item: str) -> str:
    """What is left of ``=`` in an item of a list; empty without one."""
    parts, signs = _relation(item)
    return _compact(parts[0]) if signs == ["="] and _names_something(parts[0]) else ""


def _unnamed(item: str) -> str:
    return _value_side(item) if _name(item) else item


_OPERATIONS = frozenset(("\\cdot", "\\times", "\\frac", "\\binom", "\\circ", *(f"\\{name}" for name in FUNCTIONS)))


def _names_something(left: str) -> bool:
    """Whether the right side is the value of a left one (``x``, ``AB``, ``m + n``, ``f(2)``), not half of an equation to be solved."""
    bare = re.sub(r"_ ?(?:\{[^{}]*\}|\w)", "", left)
    if (
        is_text(left)
        or re.fullmatch(r"[(\[].*[)\]]", bare)
        or re.match(r"[A-Za-z]'* ?\(|\\(?:sin|cos|tan|log|ln|angle|overline|triangle|measuredangle)", bare)
    ):
        return True
    letters = [x for x in re.findall(r"\\[A-Za-z]+|[A-Za-z]", bare) if x not in _OPERATIONS]
    if len(re.findall(r"\d ?(?:\\cdot ?|\* ?)?[A-Za-z]", bare)) > 1:  # 2x + 3y is half of an equation
        return False
    only_one = len(set(letters)) == 1 and re.search(r"[\d+*/^\\]", bare.replace(letters[0], "", 1)) is not None
    return not only_one


def _same_atom(one: str, other: str, depth: int) -> bool:
    """Two answers that are no lists."""
    (given, signs), (expected, others) = _relation(one), _relation(other)
    equals, also_equals = (found and set(found) <= {"=", "\\approx"} for found in (signs, others))
    if equals and _is_symbol(given[-1]) and not _is_symbol(given[0]):  # 5 = x
        given = given[::-1]
    if equals and not others:
        return all(map(_names_something, given[:-1])) and _same(given[-1], other, depth + 1)
    if also_equals and not signs:
        return _names_something(expected[0]) and _same(one, expected[-1], depth + 1)
    if equals and also_equals:
        return _same_equation(given, expected, depth)
    if signs or others:
        from .expressions import same_relation

        return len(signs) == len(others) == 1 and same_relation(
            (given[0], signs[0], given[1]), (expected[0], others[0], expected[1])
        )
    if ":" in one or ":" in other:
        return _same_ratio(split_unit(re.sub(_TO, ":", one))[0], split_unit(re.sub(_TO, ":", other))[0], depth)
    return _same_value(one, other)


def _same_equation(given: list[str], expected: list[str], depth: int) -> bool:
    left, right = _compact(given[0]), _compact(expected[0])
    named = _names_something(given[0]) and _names_something(expected[0])
    alike = left == right or (named and _is_symbol(left) != _is_symbol(right) and not re.search(r"\d", left + right))
    if alike and _same(given[-1], expected[-1], depth + 1):
        return True
    if len(given) != 2 or len(expected) != 2:
        return False
    from .expressions import same_relation

    return same_relation((given[0], "=", given[1]), (expected[0], "=", expected[1]))


_TO = r"(?<=\d) to (?=\d)"


def _same_ratio(one: str, other: str, depth: int) -> bool:
    """3:4 equals 3 : 4 part by part, and the fraction 3/4."""
    parts = [split_parts(text, (":",))[0] for text in (one, other)]
    if len(parts[0]) == len(parts[1]) > 1:
        return all(_same(a, b, depth + 1) for a, b in zip(*parts, strict=True))
    if sorted(map(len, parts)) != [1, 2]:
        return False
    first, second = (p[0] if len(p) == 1 else f"\\frac{{{p[0]}}}{{{p[1]}}}" for p in parts)
    return _same(first, second, depth + 1)


def _same_value(one: str, other: str) -> bool:
    (value, unit), (expected, other_unit) = split_unit(one), split_unit(other)
    if units_differ(unit, other_unit) or is_text(one):
        return False
    from .expressions import same_expression

    if same_expression(value, expected):
        return True
    if (unit or other_unit) and same_expression(one, other):  # what looked like a unit is a product
        return True
    if "%" not in (unit, other_unit) or unit == other_unit:
        return False
    whole, part = (value, expected) if unit == "%" else (expected, value)
    return same_expression(f"\\frac{{{whole}}}{{100}}", part)


def by_equality(answers: Sequence[str | None], same: Callable[[str, str], bool] = equal_answers) -> list[int | None]:
    """For each answer the place of the first one that it equals, so that equal answers have equal numbers; None for none."""
    classes: dict[int, str] = {}
    known: dict[str, int] = {}
    found: list[int | None] = []
    for place, answer in enumerate(answers):
        if answer is None:
            found.append(None)
            continue
        if answer not in known:
            known[answer] = next((first for first, text in classes.items() if same(answer, text)), place)
            classes.setdefault(known[answer], answer)
        found.append(known[answer])
    return found
