"""Formulas that no text comparison decides, read by math-verify's reader of LaTeX and compared by sympy.

Numbers are equal exactly: no rounding makes 1/2004! equal to 1/2006!. Whoever calls this sets a deadline.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from .notation import ROW
from .quantities import read_number, rounds_to

LONGEST = 2000
"""Characters of the longest formula that is read."""
DEEPEST = 40
"""Brackets within brackets that are read: each costs several levels of recursion."""
MOST_BITS = 200_000
"""Size of the largest number that is computed; larger ones equal nothing but themselves."""
DIGITS = 40
"""Precision with which irrational numbers are compared."""
POINTS = (
    ("0.7390851", "1.6180339", "2.2360679", "0.5671432"),
    ("3.1415926", "0.6931471", "1.4142135", "2.7182818"),
    ("-1.3247179", "-0.3819660", "2.5029078", "-4.6692016"),
)
"""Where formulas with variables are compared."""


def same_expression(one: str, other: str) -> bool:
    """Whether two formulas are equal wherever they are defined; a decimal of six digits or more stands for what rounds to it."""
    first, second = read_formula(one), read_formula(other)
    if first is None or second is None:
        return False
    if first == second:
        return True
    for text, exact in ((one, second), (other, first)):
        decimal = read_number(text)
        if decimal is not None and decimal.digits and not exact.free_symbols:
            return _rounds(exact, decimal.value, decimal.digits)
    return _vanishes(first - second, first)


def same_relation(one: tuple[str, str, str], other: tuple[str, str, str]) -> bool:
    """Whether two relations ``(left, sign, right)`` say the same: their differences are proportional, positively if the sign orders."""
    sides = [(read_formula(left), read_formula(right)) for left, _, right in (one, other)]
    if any(side is None for pair in sides for side in pair):
        return False
    signs, differences = [], []
    for (_, sign, _), (left, right) in zip((one, other), sides, strict=True):
        flipped = sign in (">", "\\ge")
        signs.append({">": "<", "\\ge": "\\le"}.get(sign, sign))
        differences.append(right - left if flipped else left - right)
    if signs[0] != signs[1] or any(not bounded(d) for d in differences):
        return False
    import sympy

    first, second = (sympy.expand(d.doit()) for d in differences)
    if second == 0 or first == 0:
        return bool(first == second)
    factor = sympy.cancel(first / second)
    return bool(factor.is_number and factor != 0 and (signs[0] in ("=", "\\ne") or factor.is_positive))


@functools.lru_cache(maxsize=256)
def read_formula(text: str) -> Any:
    """The sympy expression of one formula; None for what is no formula, or too long or too deep."""
    if not text.strip() or len(text) > LONGEST or _depth(text) > DEEPEST:
        return None
    parts = re.split(r"\\bmod *", text)
    if len(parts) == 2:
        return _remainder(*map(read_formula, parts))
    if (
        len(parts) > 2
        or ":" in text
        or "'" in text
        or "\\ldots" in text
        or re.search(r"[A-Za-z]{4}", re.sub(r"\\[A-Za-z]+|\\begin\{\w+\}|\\end\{\w+\}", " ", text))
    ):
        return None  # words are no products of their letters
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex
    from sympy import Basic, I, MatrixBase, Symbol

    plain = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    try:
        text = normalize_latex(_exact(text).replace(ROW, r" \\ "), config=plain)
        found = latex2sympy(text, is_real=True, convert_degrees=False, normalization_config=None)
    except Exception:  # the reader raises whatever its parts raise, RecursionError included
        return None
    if not isinstance(found, Basic | MatrixBase):
        return None
    return (
        found.subs({s: I for s in found.free_symbols if s.name == "i"})
        if Symbol("i", real=True) in found.free_symbols
        else found
    )


def _exact(text: str) -> str:
    """Degrees as radians and decimals as fractions, so that nothing is rounded."""
    text = re.sub(r"(\d+(?:\.\d+)?) ?\^ ?\{?\\circ\}?", r"(\1\\cdot\\frac{\\pi}{180})", text)
    return re.sub(r"(?<![\w.])(\d*)\.(\d+)", lambda m: f"(\\frac{{{int(m[1] + m[2])}}}{{1{'0' * len(m[2])}}})", text)


def bounded(expression: Any) -> bool:
    """Whether every number in it can be computed: powers and factorials within ``MOST_BITS``."""
    return _bits(expression) <= MOST_BITS


def _bits(e: Any) -> float:
    """About the number of bits of the largest number on the way to the expression's value."""
    import sympy

    if isinstance(e, sympy.Rational):
        return float(int(e.p).bit_length() + int(e.q).bit_length())
    sizes = [_bits(a) for a in getattr(e, "args", ())]
    if isinstance(e, sympy.Pow) and e.exp.is_number:
        exponent = _bits(e.exp)
        return (
            float("inf")
            if exponent > 64
            else (sizes[0] + 1) * abs(float(sympy.N(e.exp.doit(), 15, chop=True).as_real_imag()[0])) + 1
        )
    if isinstance(e, sympy.factorial | sympy.exp) and e.args[0].is_number:
        return (
            float("inf") if sizes[0] > 64 else abs(float(sympy.N(e.args[0].doit()).as_real_imag()[0])) * (sizes[0] + 1)
        )
    return sum(sizes) if isinstance(e, sympy.Mul) else max(sizes, default=1.0) + len(sizes)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(depth, deepest)
    return deepest


def _remainder(value: Any, modulus: Any) -> Any:
    import sympy

    if value is None or modulus is None or not (bounded(value) and bounded(modulus)):
        return None
    value, modulus = value.doit(), modulus.doit()
    return sympy.Mod(value, modulus) if value.is_Integer and modulus.is_Integer and modulus > 0 else None


def _rounds(exact: Any, decimal: Any, digits: int) -> bool:
    import sympy

    if not bounded(exact):
        return False
    value = sympy.N(exact.doit(), DIGITS)
    if not value.is_real or value == 0:
        return bool(value == decimal)
    given = sympy.Rational(decimal.numerator, decimal.denominator)
    return exact.doit() == given or rounds_to(float(abs(given / value - 1)), digits)


def _vanishes(difference: Any, first: Any) -> bool:
    """Whether a difference is 0: exactly for rational numbers, to 40 digits for others, at several points where there are variables."""
    import sympy

    if isinstance(difference, sympy.MatrixBase):
        return all(_vanishes(cell, sympy.S.One) for cell in difference)
    if not bounded(difference):
        return False
    difference, first = difference.doit(), first.doit()
    if difference.is_Rational or difference.has(sympy.oo, sympy.nan, sympy.zoo):
        return bool(difference == 0)
    symbols = sorted(difference.free_symbols, key=str)
    if not symbols:
        return _is_zero(difference, first)
    if difference.atoms(sympy.Function).difference(difference.atoms(sympy.core.function.DefinedFunction)):
        return bool(sympy.simplify(difference) == 0)  # f(x) of an unknown f has no value
    inside = [p.base for p in difference.atoms(sympy.Pow) if not p.exp.is_integer and p.base.free_symbols]
    inside += [p.args[0] for p in difference.atoms(sympy.log)]
    seen = 0
    for point in POINTS:
        values = {s: sympy.Rational(point[i % 4]) + i // 4 for i, s in enumerate(symbols)}
        if any(_negative(inner.subs(values)) for inner in inside):
            continue  # roots and logarithms of negative numbers: other branches
        there, scale = difference.subs(values), first.subs(values)
        size = sympy.N(there, 20)
        if not size.is_number or size.has(sympy.nan, sympy.zoo, sympy.oo):
            continue
        real = not difference.has(sympy.I) and sympy.N(scale, 15).is_real
        if not size.is_real and not difference.has(sympy.I):
            continue  # outside of where the reals define both
        if not _is_zero(there, scale):
            return False
        seen += bool(real) or difference.has(sympy.I)
    return seen > 0


def _negative(value: Any) -> bool:
    import sympy

    return bool(sympy.N(value, 15).is_negative)


def _is_zero(difference: Any, scale: Any) -> bool:
    import sympy

    size = sympy.N(difference, DIGITS, maxn=4 * DIGITS)
    if size == 0:
        return True
    whole = abs(sympy.N(scale, 15))
    return bool(
        size.is_number and whole.is_number and whole != 0 and abs(size) < sympy.Float(10) ** (5 - DIGITS) * whole
    )
