"""Errors meant for users: the message says what to change, so the command line prints it without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base class of every error whose message names what is wrong and the remedy. Everything else is a bug."""


class UserNotice(UserWarning):
    """A warning about the user's input, not about code: the command line prints its text alone."""


class ConfigError(UserError, ValueError):
    """A config that cannot be run. Each argument is one problem: the full key, the value given, what is expected."""

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        if len(self.args) == 1:
            return self.problems[0]
        return f"{len(self.args)} problems:" + "".join(f"\n  {i}. {text}" for i, text in enumerate(self.problems, 1))


class ModelError(UserError, ValueError):
    """A model that cannot be used; the message names the key, the path and what is missing."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint could not be written or read; names the path and what is still there."""


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name that is most like the given one, if any is."""
    return next(iter(difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)), None)


def suggest(given: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` or nothing."""
    near = nearest(given, known)
    return f" Did you mean {near!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """Of its text; the name of its class where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
