"""Errors that are raised in another process: type, message and attributes survive, also where pickle cannot call ``__init__``."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from onpolicy.data.rendering import PromptTooLong
from onpolicy.distributed.remote_errors import one_line, picklable_errors


class Twice(ValueError):
    """Pickle would put its prefix in front again."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class Unpicklable(Exception):
    pass


def sent(error: Exception) -> Any:
    with pytest.raises(Exception) as caught, picklable_errors():
        raise error
    return pickle.loads(pickle.dumps(caught.value))


@pytest.mark.parametrize(
    "error",
    [
        PromptTooLong(5, 3),
        Twice("column"),
        KeyError("column"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        FileNotFoundError(2, "no such file", "data.jsonl"),
    ],
)
def test_type_message_and_attributes_survive(error: Exception) -> None:
    message, attributes = str(error), dict(vars(error))
    found = sent(error)
    assert type(found) is type(error) and str(found) == message
    assert attributes.items() <= vars(found).items()
    assert "in process" in found.__notes__[0] and "test_remote_errors" in found.__notes__[0]


def test_what_cannot_be_pickled_comes_as_a_runtime_error() -> None:
    found = sent(Unpicklable(lambda: None))
    assert type(found) is RuntimeError and str(found).startswith("Unpicklable: <function")
    assert "in process" in found.__notes__[0]


def test_one_line() -> None:
    assert one_line(ValueError("first\nsecond")) == "ValueError: first" and one_line(ValueError()) == "ValueError: "
