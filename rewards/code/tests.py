"""The three kinds of tests: what goes into the sandbox, and whether what came out is correct. Expected values stay here, outside."""

from __future__ import annotations

import ast
import builtins
import copy
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from .inside import BESIDE
from .sandbox import Outcome, call_test, expressions_test, run_tests, stdin_test

MODULES = sys.stdlib_module_names


class Test(Protocol):
    """One test of a program."""

    @property
    def request(self) -> dict[str, Any]:
        """What goes into the sandbox."""

    def accepts(self, outcome: Outcome) -> bool:
        """Whether an outcome that is ``done`` is the correct one."""

    def shown(self, outcome: Outcome) -> tuple[str, str, str]:
        """Input, output and expected output as text."""


@dataclass(frozen=True)
class StdinTest:
    """A whole program that reads standard input and writes standard output."""

    given: str
    expected: str

    @property
    def request(self) -> dict[str, Any]:
        return stdin_test(self.given)

    def accepts(self, outcome: Outcome) -> bool:
        return same_output(self.expected, outcome.output)

    def shown(self, outcome: Outcome) -> tuple[str, str, str]:
        return self.given, outcome.output.strip(), self.expected.strip()


@dataclass(frozen=True)
class CallTest:
    """A function of the program, or a method of its class ``Solution``, that is called with arguments."""

    function: str
    arguments: tuple[Any, ...]
    expected: Any
    may_be_wrapped: bool = False
    """Whether a list of one item may stand for the item, as in APPS."""

    @property
    def request(self) -> dict[str, Any]:
        return call_test(self.function, self.arguments)

    def accepts(self, outcome: Outcome) -> bool:
        if len(outcome.values) != 1:  # a program may write there itself
            return False
        (got,) = outcome.values
        wrapped = self.may_be_wrapped and isinstance(self.expected, list) and len(self.expected) == 1
        return same_value(self.expected, got) or (wrapped and same_value(self.expected[0], got))

    def shown(self, outcome: Outcome) -> tuple[str, str, str]:
        arguments = ", ".join(map(repr, self.arguments))
        return f"{self.function}({arguments})", _values_shown(outcome), repr(self.expected)


@dataclass(frozen=True)
class AssertTest:
    """An assertion, cut in two: what it asks of the program is evaluated beside the program, and the rest where no program is.

    So neither an object that equals everything nor a look at the tests helps a program. Calls of Python's own functions around what is
    asked (``list``, ``sorted``, ``len`` ...) are evaluated beside the program, too, because what comes out has to be plain: a function may
    return a generator where ``list(f(1)) == [2]`` is asserted. No expected value is among their arguments.
    """

    source: str
    asked: tuple[str, ...]
    """Expressions about the program, e.g. ``area(2, 3)``."""
    evaluated: tuple[str, ...]
    """The same with Python's own functions under the names that no program shadows (``inside.PYTHONS``)."""
    rest: str
    """The assertion with ``value_0`` and so on in their places."""
    expected: str | None
    """The literal that the first of them must equal, where that is all."""
    setup: str = ""

    @classmethod
    def read(cls, source: str, setup: str = "") -> AssertTest:
        """Raises ValueError: it is no assertion, asks nothing of the program, or asks for each of several items in a loop of its own."""
        try:
            (statement,) = ast.parse(source.strip()).body
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"the test {source!r} cannot be read: {error}") from error
        if not isinstance(statement, ast.Assert):
            raise ValueError(f"the test {source!r} is no assertion")
        cut = _Cut(setup, statement.test, dir(builtins))
        rest = cut.rest()
        if not cut.asked:  # MBPP has a problem whose function is called sum
            cut = _Cut(setup, statement.test, ())
            rest = cut.rest()
        if not cut.asked:
            raise ValueError(f"the test {source!r} asks nothing of the program")
        whole_setup = "\n".join([setup, *sorted(cut.imports)]).strip()
        return cls(source.strip(), tuple(cut.asked), tuple(cut.evaluated), rest, _literal(rest), whole_setup)

    @property
    def request(self) -> dict[str, Any]:
        return expressions_test(self.evaluated)

    def accepts(self, outcome: Outcome) -> bool:
        if len(outcome.values) != len(self.asked):  # a program may write there itself
            return False
        if self.expected is not None:
            return bool(outcome.values[0] == ast.literal_eval(self.expected))
        names = {f"value_{i}": value for i, value in enumerate(outcome.values)}
        with closing(run_tests("", [expressions_test([f"bool({self.rest})"], names)], setup=self.setup)) as outcomes:
            return next(outcomes).values == (True,)  # nothing where it raises: a value that cannot be sorted, say

    def shown(self, outcome: Outcome) -> tuple[str, str, str]:
        expected = self.source if self.expected is None else self.expected
        return ", ".join(self.asked), _values_shown(outcome), expected


PLAIN = {
    *("abs", "all", "any", "bin", "bool", "bytes", "callable", "chr", "complex", "dict", "divmod", "float", "format", "frozenset"),
    *("hex", "int", "isinstance", "issubclass", "len", "list", "max", "min", "next", "oct", "ord", "pow", "repr", "round", "set"),
    *("sorted", "str", "sum", "tuple"),
}  # fmt: skip
"""Python's functions that make a plain value of what a program returns, whatever that is."""
LAZY = {"enumerate", "filter", "iter", "map", "range", "reversed", "zip"}
"""Those whose results are for one of the others, or for a loop."""


class _Cut:
    """Takes out of an assertion what depends on the program: the outermost expressions that start from a name which neither Python nor the
    setup knows, with the calls of Python's own functions around them."""

    def __init__(self, setup: str, test: ast.expr, known: Iterable[str]) -> None:
        self.asked: list[str] = []
        self.evaluated: list[str] = []
        self.imports: set[str] = set()
        self._test = test
        stored = {n.id for n in ast.walk(test) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self._bound = stored | {a.arg for n in ast.walk(test) if isinstance(n, ast.Lambda) for a in n.args.args}
        own = self._bound | _defined(setup)
        self._python = set(known) - own
        self._known = {*known, *own}

    def rest(self) -> str:
        """The assertion with ``value_0`` and so on in place of what is asked."""
        return ast.unparse(self._truth(copy.deepcopy(self._test)))

    def _truth(self, node: ast.expr) -> ast.expr:
        """Of an expression whose truth alone counts."""
        if isinstance(node, ast.BoolOp):
            node.values = list(map(self._truth, node.values))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            node.operand = self._truth(node.operand)
        elif isinstance(node, ast.IfExp):
            node.test, node.body, node.orelse = map(self._truth, (node.test, node.body, node.orelse))
        else:
            return self._value(node, "bool")
        return node

    def _value(self, node: ast.expr, through: str = "") -> ast.expr:
        """Of an expression whose value counts, or what a function beside the program makes of it."""
        beside = self._beside(node)
        if beside is not None and (through or not self._is_lazy(node)):
            return self._ask(node, _call_of(through, beside) if through else beside)
        for field, held in ast.iter_fields(node):
            if isinstance(held, list):
                setattr(node, field, [self._part(node, field, part) for part in held])
            else:
                setattr(node, field, self._part(node, field, held))
        return node

    def _part(self, node: ast.AST, field: str, part: Any) -> Any:
        """Of a part of an expression that the program has no name for."""
        if isinstance(part, ast.comprehension):
            part.iter, part.ifs = self._value(part.iter, "items"), list(map(self._truth, part.ifs))
        elif isinstance(part, ast.keyword):
            part.value = self._value(part.value)
        if not isinstance(part, ast.expr):
            return part
        if isinstance(node, ast.IfExp) and field == "test":
            return self._truth(part)
        looped = isinstance(node, ast.Starred) or (field == "args" and self._is_lazy(node))
        return self._value(part, "items" if looped else _compared(node, part))

    def _beside(self, node: ast.expr) -> ast.expr | None:
        """What is evaluated beside the program, with Python's functions by the names that it has there; None where there is more in it
        than the program's own (an expected value, say)."""
        root = _root(node)
        if root is None:
            return None
        if root.id not in self._known:
            return node if not self._is_of_a_module(node, root.id) else None
        if _function(node) not in (PLAIN | LAZY) & self._python:
            return None
        assert isinstance(node, ast.Call)
        parts = [*node.args, *(keyword.value for keyword in node.keywords)]
        found = [self._beside(part) for part in parts]
        others = [part for part, own in zip(parts, found, strict=True) if own is None]
        takes_a_function = any(
            isinstance(own, ast.Name) for own in found
        )  # list(map(f, [1, 2])): what is beside it goes to the program
        allowed = _is_literal if takes_a_function else self._is_of_python
        if len(others) != len(parts) - 1 or not all(map(allowed, others)):
            return None
        new = [_pythons(part) if own is None else own for part, own in zip(parts, found, strict=True)]
        keywords = [ast.keyword(k.arg, value) for k, value in zip(node.keywords, new[len(node.args) :], strict=True)]
        return ast.Call(_pythons(node.func), new[: len(node.args)], keywords)

    def _is_lazy(self, node: ast.AST) -> bool:
        return _function(node) in LAZY & self._python

    def _is_of_python(self, node: ast.expr) -> bool:
        """A constant, or the name of something of Python's."""
        return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id in self._python)

    def _is_of_a_module(self, node: ast.expr, name: str) -> bool:
        """Whether a name that nobody defined is a module of Python's, which is then imported."""
        if name not in MODULES or not isinstance(node, ast.Call | ast.Attribute) or _function(node):
            return False
        self.imports.add(f"import {name}")
        self._known.add(name)
        return True

    def _ask(self, node: ast.expr, evaluated: ast.expr) -> ast.expr:
        source = ast.unparse(node)
        if any(isinstance(n, ast.Name) and n.id in self._bound for n in ast.walk(node)):
            raise ValueError(
                f"the test asks the program for {source} in a loop of its own; expected one assertion for each item"
            )
        self.asked.append(source)
        self.evaluated.append(ast.unparse(evaluated))
        return ast.Name(f"value_{len(self.asked) - 1}", ast.Load())


def _function(node: ast.AST) -> str:
    """The name of the function that a call calls; empty where it is no call, or not of a name."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _pythons(node: ast.expr) -> ast.expr:
    """A name of Python's as it is beside the program; a constant."""
    return ast.Name(f"{BESIDE}{node.id}", ast.Load()) if isinstance(node, ast.Name) else node


def _call_of(function: str, argument: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(f"{BESIDE}{function}", ast.Load()), [argument], [])


def _compared(node: ast.AST, part: ast.expr) -> str:
    """What is enough to know of a side of a comparison: its items right of ``in``, whether it is there beside None."""
    if not isinstance(node, ast.Compare):
        return ""
    sides = [node.left, *node.comparators]
    for operation, left, right in zip(node.ops, sides, sides[1:], strict=False):
        if isinstance(operation, ast.In | ast.NotIn):
            if part is right:
                return "items"
        elif part in (left, right) and any(
            isinstance(side, ast.Constant) and side.value is None for side in (left, right)
        ):
            return "presence"
    return ""


def _root(node: ast.AST) -> ast.Name | None:
    """The name that an expression of calls, attributes and items starts from."""
    while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else None


def _defined(setup: str) -> set[str]:
    """Names that the setup binds at its top."""
    names = set()
    for node in ast.parse(setup).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


def _values_shown(outcome: Outcome) -> str:
    """The values as text; Python has none for some that a program can make."""
    try:
        return ", ".join(map(repr, outcome.values))
    except (ValueError, RecursionError, MemoryError):
        return "a value that is too large to show"


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True


def _literal(rest: str) -> str | None:
    """The text of L where the rest is ``value_0 == L`` and L a literal."""
    test = ast.parse(rest, mode="eval").body
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return None
    if not _is_literal(test.comparators[0]):
        return None
    return ast.unparse(test.comparators[0]) if isinstance(test.left, ast.Name) and test.left.id == "value_0" else None


def same_output(expected: str, got: str) -> bool:
    """Whether two outputs are equal line by line, white space around lines aside; lines of numbers by their values (1.50 is 1.5)."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (expected, got))
    return len(ours) == len(theirs) and all(a == b or _same_numbers(a, b) for a, b in zip(ours, theirs, strict=True))


_NUMBER = re.compile(r"[-+]?(\d++\.?+\d*+|\.\d++)([eE][-+]?\d{1,4})?")
"""What it has read it keeps, so that it takes no longer for a long line that ends in something else."""


def _same_numbers(a: str, b: str) -> bool:
    ours, theirs = a.split(), b.split()
    if len(ours) != len(theirs) or not all(map(_NUMBER.fullmatch, [*ours, *theirs])):
        return False
    try:
        return all(Decimal(x) == Decimal(y) for x, y in zip(ours, theirs, strict=True))
    except InvalidOperation:
        return False


def same_value(expected: Any, got: Any) -> bool:
    """Python's equality, but for tuples, which equal lists, and keys of dictionaries, which JSON has as texts."""
    if isinstance(got, Mapping) and isinstance(expected, Mapping):
        named = {str(key): value for key, value in got.items()}
        keys = {str(key) for key in expected}
        return (
            len(named) == len(got)
            and keys == named.keys()
            and all(same_value(v, named[str(k)]) for k, v in expected.items())
        )
    if isinstance(got, list | tuple) and isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(map(same_value, expected, got))
    return bool(expected == got)
