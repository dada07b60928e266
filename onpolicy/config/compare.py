"""Where two configs differ: for resuming a run, for the arms of a sweep, for ``onpolicy diff``, for runs that repeat each other."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from onpolicy.config.keys import under

ABSENT = object()
"""Stands for a value that one of the two does not have."""


class ConfigDifference(NamedTuple):
    """A value that is not the same in both."""

    key: str
    """Its full key, e.g. ``objective[0].weight``."""
    one: Any
    other: Any


def config_differences(
    one: Any, other: Any, ignored: Collection[str] = (), key: str = ""
) -> Iterator[ConfigDifference]:
    """Every value that two trees of settings do not share.

    Args:
        one: nested dictionaries and lists; ABSENT for nothing, which lists every value of the other
        ignored: keys left out, with all that lies below them
        key: where the trees stand in their configs
    """
    if key and under(key, ignored):
        return
    kinds = {type(side) for side in (one, other) if side is not ABSENT}
    if kinds == {dict} and (one or other):
        first, second = ({} if side is ABSENT else side for side in (one, other))
        for name in dict.fromkeys([*second, *first]):
            inner = f"{key}.{name}" if key else str(name)
            yield from config_differences(first.get(name, ABSENT), second.get(name, ABSENT), ignored, inner)
    elif kinds == {list} and (one or other):
        first, second = ([] if side is ABSENT else side for side in (one, other))
        for i in range(max(len(first), len(second))):
            a, b = (side[i] if i < len(side) else ABSENT for side in (first, second))
            yield from config_differences(a, b, ignored, f"{key}[{i}]")
    elif one is ABSENT or other is ABSENT or _as_number(one) != _as_number(other):
        yield ConfigDifference(key, one, other)


def fingerprint(settings: Any, ignored: Collection[str] = ()) -> str:
    """The same text for the same settings, and for no others."""
    return json.dumps(sorted((key, shown(one)) for key, one, _ in config_differences(settings, ABSENT, ignored)))


def shown(value: Any) -> str:
    """A value as a message or a table has it."""
    if value is ABSENT:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _as_number(value: Any) -> Any:
    """YAML reads ``1e-6`` as a text; an option that expects a number makes one of it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
