"""Plug-ins that stand for another one: which one is decided on the machine where the config is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The plug-in that was chosen."""

    name: str
    """Of the same kind."""
    reason: str
    """A clause, e.g. ``vLLM is installed``."""


def chooser(function: Callable[[], Choice]) -> Callable[[], Choice]:
    """Declares a function to be called where a config is read; the plug-in that it names takes its place, in what is recorded too."""
    function.chooses = True  # type: ignore[attr-defined]
    return function
