"""What the command line takes, checked before anything is loaded: types for ``argparse``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def whole(text: str) -> int:
    """A whole number above 0."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number above 0")
    return int(text)


def above_zero(text: str) -> float:
    value = _number(text)
    if value is None or not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return value


def share(text: str) -> float:
    """A fraction above 0 and at most 1."""
    value = _number(text)
    if value is None or not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0, at most 1")
    return value


def new_file(text: str) -> Path:
    """A file that can be written: its folder is there. Whoever waits for hours should not lose them to a typing error."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a file; "
            + ("this is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}")
        )
    return path


def unrecognized(words: Sequence[str], takes_settings: bool) -> str:
    """What to say of words that no argument takes; of an option, how a setting is written.

    Args:
        words: as they were typed
        takes_settings: whether the command takes ``key=value``
    """
    said = f"unrecognized arguments: {' '.join(words)}"
    name, _, value = words[0].removeprefix("--").partition("=")
    if not takes_settings or not words[0].startswith("--") or not name:
        return said
    value = value or next((word for word in words[1:2] if not word.startswith("-")), "VALUE")
    return f"{said}; a setting has no dashes and an equals sign: {name}={value}"


class PassRateRange(argparse.Action):
    """LOW HIGH: the range in which a problem's pass rate has to lie, both between 0 and 1."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, self._checked(values))

    def _checked(self, texts: Sequence[str]) -> tuple[float, float]:
        low, high = (_number(text) for text in texts)
        if low is None or high is None or not 0 <= low <= high <= 1:
            raise argparse.ArgumentError(
                self,
                f"got {' '.join(texts)!r}, expected two fractions between 0 and 1, the lower one first, e.g. 0.125 0.5",
            )
        return low, high


class Renamed(argparse.Action):
    """An option of an earlier version, which is refused with its new name."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, to: str) -> None:
        super().__init__(option_strings, dest, nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.to = to

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        raise argparse.ArgumentError(self, f"this option is now called {self.to}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
