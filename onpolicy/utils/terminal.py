"""What reaches the terminal: other people's text made safe to show, and libraries' start-up messages kept out."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from onpolicy.utils.errors import UserNotice

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, and those that change the direction of text."""
CHATTY = ("vllm", "DeepSpeed")
"""Loggers that say nothing about the run below the level of an error."""


def printable(text: str) -> str:
    """Control characters as their escapes: ``\\x1b`` in place of the character that starts a terminal command."""
    return UNSEEN.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def command_line(words: Sequence[str]) -> str:
    """``onpolicy`` with these arguments, to be pasted where it is printed; with the path of its Python where a shell does not find it."""
    python, found = Path(sys.executable), shutil.which("onpolicy")
    if found and Path(found).parent.resolve() == python.parent.resolve():
        start = ["onpolicy"]
    else:
        start = [str(python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python), "-m", "onpolicy"]
    return printable(shlex.join([*start, *words]))


def print_next(*commands: Sequence[str]) -> None:
    """Says what to run next: the arguments of each command, which is printed as it can be pasted."""
    for words in commands:
        print(f"next: {command_line(words)}")


def plain(text: object) -> str:
    """For places where rich reads markup: shows the text itself, brackets included."""
    return escape(printable(str(text)))


def print_json(value: Any) -> None:
    """Prints JSON that every reader and terminal takes: in ASCII, and numbers without a JSON form are text, as in a config (``.inf``)."""
    print(json.dumps(_with_json_numbers(value), indent=1, default=str))


def _with_json_numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _with_json_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with_json_numbers(inner) for inner in value]
    return (
        f"{value:.0f}".replace("inf", ".inf").replace("nan", ".nan")
        if isinstance(value, float) and not math.isfinite(value)
        else value
    )


@functools.cache
def plain_notices() -> None:
    """Prints a ``UserNotice`` as its text, without the place in the code that Python puts before a warning."""
    usual = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UserNotice):
            return printable(f"{message}\n")
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = formatted


def quiet_libraries() -> None:
    """Hides what libraries print at start-up; errors still come through. Call it before torch is imported; variables that the
    user has set win."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # in a file a bar is a line for each of its states; a heartbeat says where a run is
        os.environ.setdefault("TQDM_DISABLE", "1")
    # what Python says of installed code when it compiles it, at its first import; of a user's own code it still says it
    warnings.filterwarnings("ignore", category=SyntaxWarning, module=".*site-packages")
    for name in CHATTY:
        # a filter stays when the library sets its own level later
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
        logging.getLogger(f"{name}.triton_utils.importing").addFilter(lambda record: record.levelno >= logging.ERROR)
