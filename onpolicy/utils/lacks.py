"""Options that a plug-in does not have where another one of its kind has them, and what takes their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def lacks(**instead: str) -> Callable[[Function], Function]:
    """Declares options that a plug-in is likely to be given and does not have; a config that gives one is refused with the text.

    Args:
        instead: option -> why there is none and what to use, a clause without a full stop
    """

    def declare(function: Function) -> Function:
        function.lacks = instead  # type: ignore[attr-defined]
        return function

    return declare


def what_instead(function: Callable[..., Any], option: str) -> str:
    """What a plug-in's function says about an option that it does not have, or nothing."""
    declared: dict[str, str] = getattr(function, "lacks", {})
    return declared.get(option, "")
