"""Text as it was typed, kept beside what YAML makes of it until it is known whether the option wants text.

YAML reads ``0123456`` as a number, ``Q: {problem}`` as a mapping and ``# {problem}`` as nothing. A commit, a folder or a prompt may be
written so. Where the text cannot be told from the value, the two stay together as a ``Plain``; its option decides which counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from onpolicy.utils.errors import ConfigError

NULLS = ("", "null", "Null", "NULL")
"""What stands for nothing where an option may be absent; ``~`` does where it is no text."""
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INT = re.compile(rf"[-+]?{_DIGITS}")
_OTHER_BASE = re.compile(r"[-+]?0(?:x[0-9a-fA-F]+|o[0-7]+|b[01]+)")
_FLOAT = re.compile(
    rf"[-+]?(?:(?:{_DIGITS}\.?(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)


class Plain:
    """A value without quotes, where its text says more than its value. It equals its value, and is that number, for those who do not
    want its text."""

    def __init__(self, text: str, value: Any, problem: str | None = None) -> None:
        """
        Args:
            text: as it was typed
            value: what YAML makes of it
            problem: why YAML makes nothing of it
        """
        self.text, self.problem = text, problem
        self._value = value

    def value(self, key: str) -> Any:
        """What YAML makes of it; raises ConfigError, with this key, where that is nothing."""
        if self.problem is not None:
            raise ConfigError(f"{key}: got {self.text!r}, which is not valid YAML: {self.problem}")
        return self._value

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Plain):
            return (self.text, self.problem) == (other.text, other.problem)
        return self.problem is None and bool(self._value == other)

    def __hash__(self) -> int:
        return hash(self.text)

    def __float__(self) -> float:
        return float(self._value)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return repr(self.text)


def scalar(text: str) -> Any:
    """A text without quotes as a value: nothing, a truth value, a number, else the text itself.

    Numbers are decimal unless they say otherwise (``010`` is 10, ``0x10`` is 16); times and dates are text, and so is a number that
    no float can hold.
    """
    if text in NULLS or text == "~":
        return None
    if text in {text.lower(), text.upper(), text.capitalize()} and text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    try:
        if _INT.fullmatch(text):
            return int(text)
        if _OTHER_BASE.fullmatch(text):
            return int(text, 0)
    except ValueError:  # more digits than Python reads
        return text
    if _FLOAT.fullmatch(text):
        named = text.lower().lstrip("+-").startswith((".inf", ".nan"))
        number = float(text.replace(".", "") if named else text)
        return text if abs(number) == float("inf") and not named else number
    return text


def read_plain(text: str) -> Any:
    """A text without quotes as its value; as a ``Plain`` where the value does not lead back to the text."""
    value = scalar(text)
    return value if isinstance(value, str) or text in ("", text_of(value)) else Plain(text, value)


def text_of(value: Any) -> str:
    """How a value is written in a config."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def meant(value: Any, key: str) -> Any:
    """A value, or what YAML makes of a ``Plain``; raises ConfigError where that is nothing."""
    return value.value(key) if isinstance(value, Plain) else value


def valued(tree: Any, key: str) -> Any:
    """A tree with values alone: for those who know of no option that wants text.

    Raises:
        ConfigError: YAML makes nothing of a text in it.
    """
    if isinstance(tree, Plain):
        return valued(tree.value(key), key)
    if isinstance(tree, Mapping):
        return {name: valued(inner, f"{key}.{name}") for name, inner in tree.items()}
    return [valued(inner, f"{key}[{i}]") for i, inner in enumerate(tree)] if isinstance(tree, list) else tree
