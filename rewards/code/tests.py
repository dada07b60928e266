"""The three kinds of tests: what goes into the sandbox, and whether what came out is correct. Expected values stay here, outside."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

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
        return f"{self.function}({arguments})", ", ".join(map(repr, outcome.values)), repr(self.expected)


@dataclass(frozen=True)
class AssertTest:
    """An assertion, cut in two: what it asks of the program is evaluated beside the program, and the rest where no program is.

    So neither an object that equals everything nor a look at the tests helps a program.
    """

    source: str
    asked: tuple[str, ...]
    """Expressions about the program, e.g. ``area(2, 3)``."""
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
        rest = ast.unparse(cut.visit(statement.test))
        if not cut.asked:  # MBPP has a problem whose function is called sum
            cut = _Cut(setup, statement.test, ())
            rest = ast.unparse(cut.visit(statement.test))
        if not cut.asked:
            raise ValueError(f"the test {source!r} asks nothing of the program")
        return cls(
            source.strip(), tuple(cut.asked), rest, _literal(rest), "\n".join([setup, *sorted(cut.imports)]).strip()
        )

    @property
    def request(self) -> dict[str, Any]:
        return expressions_test(self.asked)

    def accepts(self, outcome: Outcome) -> bool:
        if len(outcome.values) != len(self.asked):  # a program may write there itself
            return False
        if self.expected is not None:
            return bool(outcome.values[0] == ast.literal_eval(self.expected))
        names = {f"value_{i}": value for i, value in enumerate(outcome.values)}
        with closing(run_tests("", [expressions_test([f"bool({self.rest})"], names)], setup=self.setup)) as outcomes:
            return next(outcomes).values == (True,)  # nothing where it raises: a value that cannot be sorted, say

    def shown(self, outcome: Outcome) -> tuple[str, str, str]:
        got = ", ".join(map(repr, outcome.values))
        return ", ".join(self.asked), got, self.source if self.expected is None else self.expected


class _Cut(ast.NodeTransformer):
    """Takes out of an assertion what depends on the program: the outermost expressions that start from a name which neither Python nor the
    setup knows."""

    def __init__(self, setup: str, test: ast.expr, known: Iterable[str]) -> None:
        self.asked: list[str] = []
        self.imports: set[str] = set()
        stored = {n.id for n in ast.walk(test) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self._bound = stored | {a.arg for n in ast.walk(test) if isinstance(n, ast.Lambda) for a in n.args.args}
        self._known = {*known, *self._bound, *_defined(setup)}

    def visit(self, node: ast.AST) -> Any:
        root = _root(node)
        if root is None or root.id in self._known:
            return self.generic_visit(node)
        if (
            root.id in MODULES
            and isinstance(node, ast.Call | ast.Attribute)
            and not isinstance(getattr(node, "func", None), ast.Name)
        ):
            self.imports.add(f"import {root.id}")
            self._known.add(root.id)
            return self.generic_visit(node)
        source = ast.unparse(node)
        if any(isinstance(n, ast.Name) and n.id in self._bound for n in ast.walk(node)):
            raise ValueError(
                f"the test asks the program for {source} in a loop of its own; expected one assertion for each item"
            )
        self.asked.append(source)
        return ast.copy_location(ast.Name(f"value_{len(self.asked) - 1}", ast.Load()), node)


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


def _literal(rest: str) -> str | None:
    """The text of L where the rest is ``value_0 == L`` and L a literal."""
    test = ast.parse(rest, mode="eval").body
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return None
    try:
        ast.literal_eval(test.comparators[0])
    except (ValueError, TypeError):
        return None
    return ast.unparse(test.comparators[0]) if isinstance(test.left, ast.Name) and test.left.id == "value_0" else None


def same_output(expected: str, got: str) -> bool:
    """Whether two outputs are equal line by line, white space around lines aside; lines of numbers by their values (1.50 is 1.5)."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (expected, got))
    return len(ours) == len(theirs) and all(a == b or _same_numbers(a, b) for a, b in zip(ours, theirs, strict=True))


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,4})?")


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
