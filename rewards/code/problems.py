"""Coding problems in the shapes of public datasets -> tests.

LiveCodeBench (``public_test_cases``, ``private_test_cases``, ``metadata``), APPS (``input_output``; TACO's and verl's code rows, too) and
MBPP (``test_list``, ``challenge_test_list``, ``test_setup_code``, ``test_imports``). Reference programs in a row are not read.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .tests import AssertTest, CallTest, StdinTest, Test

SHAPES = {
    "LiveCodeBench": ("public_test_cases", "private_test_cases"),
    "APPS": ("input_output",),
    "MBPP": ("test_list",),
}
"""Dataset -> the columns of which one tells its rows."""
MOST_BYTES = 1 << 30
"""The most that packed tests of a row may unpack to."""


@dataclass(frozen=True)
class CodeProblem:
    """What decides whether a program is correct."""

    tests: tuple[Test, ...]
    setup: str = ""
    """Source that runs before the program."""


def shape_of(row: Mapping[str, Any]) -> str | None:
    """The dataset whose shape a row has; None where it holds no tests."""
    found = (name for name, columns in SHAPES.items() if any(row.get(column) is not None for column in columns))
    return next(found, None)


def problem_of(row: Mapping[str, Any]) -> CodeProblem:
    """The tests of a row.

    Raises:
        ValueError: it has none, or they cannot be read; names the column.
    """
    read = {"LiveCodeBench": _livecodebench, "APPS": _apps, "MBPP": _mbpp}
    shape = shape_of(row)
    if shape is None:
        expected = ", ".join(column for columns in SHAPES.values() for column in columns)
        raise ValueError(
            f"the row has no tests: expected one of the columns {expected}; it has {', '.join(row) or 'none'}"
        )
    problem = read[shape](row)
    if not problem.tests:
        raise ValueError(f"the columns {', '.join(SHAPES[shape])} hold no test, expected at least one")
    return problem


def shown_tests(row: Mapping[str, Any]) -> list[str]:
    """The assertions of a row of MBPP that its prompt shows, as its authors' does; those of ``challenge_test_list`` are not among them."""
    return [str(source) for source in _listed(row, "test_list")]


def _livecodebench(row: Mapping[str, Any]) -> CodeProblem:
    metadata = _parsed(row.get("metadata") or {}, "metadata", dict)
    function = metadata.get("func_name")
    cases = [
        case
        for column in SHAPES["LiveCodeBench"]
        if row.get(column) is not None
        for case in _parsed(_unpacked(row[column], column), column, list)
    ]
    tests: list[Test] = []
    for number, case in enumerate(cases):
        try:
            given, expected = case["input"], case["output"]
            if case.get("testtype", "functional" if function else "stdin") == "stdin":
                tests.append(StdinTest(str(given), str(expected)))
            else:
                arguments = [json.loads(line) for line in given.split("\n") if line.strip()]
                tests.append(CallTest(_name(function), tuple(arguments), json.loads(expected)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"test {number} of the row cannot be read: {type(error).__name__}: {error}") from error
    return CodeProblem(tuple(tests))


def _apps(row: Mapping[str, Any]) -> CodeProblem:
    held = _parsed(row["input_output"] or {}, "input_output", dict)
    inputs, outputs, function = held.get("inputs") or [], held.get("outputs") or [], held.get("fn_name")
    if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence) or len(inputs) != len(outputs):
        raise ValueError(
            f"column 'input_output' holds {len(inputs)} inputs and {len(outputs)} outputs, expected as many of both"
        )
    if not function:
        return CodeProblem(
            tuple(StdinTest(_text(given), _text(expected)) for given, expected in zip(inputs, outputs, strict=True))
        )
    tests = []
    for given, expected in zip(inputs, outputs, strict=True):
        arguments = given if isinstance(given, list) else json.loads(given)
        tests.append(CallTest(_name(function), tuple(arguments), expected, may_be_wrapped=True))
    return CodeProblem(tuple(tests))


def _mbpp(row: Mapping[str, Any]) -> CodeProblem:
    setup = "\n".join([str(row.get("test_setup_code") or ""), *map(str, _listed(row, "test_imports"))]).strip()
    sources = [*_listed(row, "test_list"), *_listed(row, "challenge_test_list")]
    return CodeProblem(tuple(AssertTest.read(str(source), setup) for source in sources), setup)


def _listed(row: Mapping[str, Any], column: str) -> list[Any]:
    value = row.get(column)
    if isinstance(value, str):
        return list(_parsed(value, column, list))
    return [] if value is None else list(value)


def _text(value: Any) -> str:
    """Some rows have a text's lines."""
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _name(function: Any) -> str:
    if not isinstance(function, str) or not function.isidentifier():
        raise ValueError(f"the function to call: got {function!r}, expected its name")
    return function


def _parsed(value: Any, column: str, kind: type) -> Any:
    """JSON text, or what it would hold."""
    try:
        found = json.loads(value) if isinstance(value, str | bytes) else value
    except ValueError as error:
        raise ValueError(f"column {column!r} holds broken JSON: {error}") from error
    if not isinstance(found, kind):
        raise ValueError(f"column {column!r} holds a {type(found).__name__}, expected a {kind.__name__}")
    return found


def _unpacked(value: Any, column: str) -> Any:
    """LiveCodeBench packs private tests: base64 of zlib of a pickle of JSON text; other rows hold the JSON."""
    if not isinstance(value, str) or value.lstrip()[:1] in ("[", ""):
        return value or "[]"
    try:
        packed = base64.b64decode(value, validate=True)
        inflater = zlib.decompressobj()
        data = inflater.decompress(packed, MOST_BYTES)
        if inflater.unconsumed_tail:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        return _pickled_text(data) if data[:1] == b"\x80" else data.decode()
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"column {column!r} holds neither JSON nor packed tests: {error}") from error


def _pickled_text(data: bytes) -> str:
    """The text of a pickle that holds a text alone: its operations are read, none is carried out."""
    texts = []
    for operation, argument, _ in pickletools.genops(data):
        if "UNICODE" in operation.name:
            texts.append(argument)
        elif operation.name not in ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"):
            raise ValueError(f"its pickle holds more than a text (the operation {operation.name})")
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise ValueError(f"its pickle holds {len(texts)} texts, expected one")
    return texts[0]
