"""Reading and comparing formulas as arXiv 2603.24472's evaluations do: sympy's own syntax first, then LaTeX.

Its readers were sympy's ``parse_expr``, which evaluates what it is given as Python, and latex2sympy2 1.5.4. Here a few lines read what
``parse_expr`` would make of a formula, without evaluating anything, and latex2sympy2_extended reads LaTeX, less what 1.5.4 cannot read.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from typing import Any

import sympy

from .paper_equality import close

_UNREADABLE = re.compile(
    r"\\[,: ]|;|\\quad|\\circ|\\pm|\\mp|\\math|\\text|\\cfrac|\\cup|\\cap|\\in(?![a-z])|\\ldots|\\cdots|°|\{,\}|(?<!\\sqrt)\["
)
"""What latex2sympy2 1.5.4 cannot read: a text with it is equal to the letter or not at all."""
_ENDS = ("c", "'", "\\\\", "\\to")
"""Where it stops reading, and takes what it has read for the whole; its lexer lacks the letter c."""
_OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.BitXor: operator.xor,
}  # fmt: skip
_NAMES = {"pi": sympy.pi, "E": sympy.E, "I": sympy.I, "oo": sympy.oo}
_FUNCTIONS = {
    name: getattr(sympy, name)
    for name in ("sqrt", "exp", "log", "ln", "sin", "cos", "tan", "Abs", "factorial", "binomial")
}


def equal_expressions(one: str, other: str) -> bool:
    """Whether both can be read and do not differ: as they stand, simplified, as equations, in numbers, or as rounded matrices."""
    try:
        first, second = read_expression(one), read_expression(other)
    except Exception:  # what cannot be read is different
        return False
    return any(_holds(test, first, second) for test in (_identical, _simplified, _same_equation, _near, _rounded))


def read_expression(text: str) -> Any:
    """Raises whatever a reader raises on text that is no formula."""
    last: Exception | None = None
    for reader in (_python, _latex):
        for spelling in (text.replace("\\\\", "\\"), text):  # a doubled backslash is first taken for a single one
            try:
                return reader(spelling)
            except Exception as error:
                last = error
    raise last or ValueError("no reader")


def _python(text: str) -> Any:
    with warnings.catch_warnings(action="ignore"):  # of what is no Python
        return _evaluated(ast.parse(text, mode="eval").body)


def _evaluated(node: ast.AST) -> Any:
    """Python syntax as sympy's ``parse_expr`` takes it: ``^`` is exclusive or, ``x(y)`` a function's value."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return sympy.Integer(node.value) if isinstance(node.value, int) else sympy.Float(repr(node.value))
    if isinstance(node, ast.Name):
        return _NAMES.get(node.id) or sympy.Symbol(node.id)
    if isinstance(node, ast.Tuple | ast.List):
        return list(map(_evaluated, node.elts))
    if isinstance(node, ast.Set):
        return sympy.FiniteSet(*map(_evaluated, node.elts))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_evaluated(node.operand))
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluated(node.left), _evaluated(node.right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id) or sympy.Function(node.func.id)
        return function(*map(_evaluated, node.args))
    return _refuse()


def _refuse() -> Any:
    raise ValueError("no formula")


def _latex(text: str) -> Any:
    from latex2sympy2_extended import latex2sympy

    text = _beginning(text).rpartition("=")[2]  # of an equation 1.5.4 returns the right side
    if _UNREADABLE.search(text):
        _refuse()
    text = re.sub(r"(?<=\d)(?=\\frac)", r"\\cdot ", text)  # and of 3\frac{1}{2} the product
    found = latex2sympy(text, is_real=True, normalization_config=None, convert_degrees=False)
    return _refuse() if isinstance(found, sympy.Set) and found is not sympy.S.EmptySet else found


def _beginning(text: str) -> Any:
    """What 1.5.4 reads of a text: up to a bracket that nothing opened, or one of ``_ENDS`` outside of matrices."""
    depth, read_so_far = 0, ""
    for token in re.findall(r"\\[A-Za-z]+|\\.|.", text):
        depth += (token in ("(", "[", "{")) - (token in (")", "]", "}"))
        if depth < 0 or (token in _ENDS and "\\begin" not in text):
            break
        read_so_far += token
    return _refuse() if depth > 0 else read_so_far


def _holds(test: Any, one: Any, other: Any) -> bool:
    try:
        return bool(test(one, other))
    except Exception:  # a comparison that these two do not support
        return False


def _identical(one: Any, other: Any) -> bool:
    return str(one) == str(other) or one == other


def _simplified(one: Any, other: Any) -> bool:
    return one.equals(other) or sympy.simplify(one - other) == 0


def _same_equation(one: Any, other: Any) -> bool:
    return bool(abs(one.lhs - one.rhs).equals(abs(other.lhs - other.rhs)))


def _near(one: Any, other: Any) -> bool:
    return close(float(sympy.N(one)), float(sympy.N(other)))


def _rounded(one: Any, other: Any) -> bool:
    first, second = (matrix.applyfunc(lambda cell: round(cell, 3)) for matrix in (one, other))
    return one.shape == other.shape and bool(first.equals(second))
