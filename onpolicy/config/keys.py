"""Full keys of a config, as messages and overrides write them: ``objective[0].weight``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from onpolicy.config.plain import meant

_KEY = re.compile(r"[^.\[\]]+(?:\[\d+\]|\.[^.\[\]]+)*")


def under(key: str, beginnings: Iterable[str]) -> bool:
    """Whether a key is one of these or lies below it: ``objective[0].weight`` under ``objective``, ``trainer.lr_schedule``
    not under ``trainer.lr``."""
    return any(key == b or key.startswith((f"{b}.", f"{b}[")) for b in beginnings)


def parts(key: str) -> list[str | int]:
    """``objective[0].weight`` -> ``["objective", 0, "weight"]``."""
    found = re.findall(r"([^.\[\]]+)|\[(\d+)\]", key)
    return [int(index) if index else name for name, index in found]


def replace(tree: Any, key: str, value: Any) -> bool:
    """Puts a value where the key leads in nested dictionaries and lists; False where there is no such place."""
    if not (path := parts(key)):
        return False
    *path, last = path
    for part in path:
        tree = _child(tree, part)
    place = isinstance(tree, dict) if isinstance(last, str) else isinstance(tree, list) and last < len(tree)
    if place:
        tree[last] = value
    return place


def find_value(tree: Any, key: str) -> Any:
    """What the key leads to in nested dictionaries and lists; None where there is nothing."""
    for part in parts(key):
        tree = _child(tree, part)
    return tree


def put_value(tree: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value where the key leads; mappings on the way there that do not exist are made, items of lists are not.

    Raises:
        ValueError: not a key, or it leads into a list by a name, into a mapping by a number, or beyond the end of a list.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"got the key {key!r}, expected names with dots between them, e.g. objective[0].weight")
    path = parts(key)
    place: Any = tree
    for i, part in enumerate(path):
        found = _place(place, part, key)
        if i == len(path) - 1:
            place[found] = value
            return
        inner = meant(place.get(found) if isinstance(place, dict) else place[found], key)
        if not isinstance(inner, dict | list):
            if isinstance(path[i + 1], int):
                raise ValueError(f"{key}: [{path[i + 1]}] stands behind what is no list")
            inner = {"name": inner} if isinstance(inner, str) else {}  # a plug-in may stand under its bare name
        place[found] = place = inner


def _place(tree: Any, part: str | int, key: str) -> Any:
    """How a part of a key names an item of a mapping or a list."""
    if isinstance(tree, dict):
        if isinstance(part, int):
            raise ValueError(f"{key}: [{part}] stands behind what is no list")
        return part
    if not str(part).isdecimal():
        raise ValueError(f"{key}: {part!r} stands in a list, expected a number in brackets")
    if int(part) >= len(tree):
        raise ValueError(f"{key}: got [{part}], but the list has {len(tree)} items")
    return int(part)


def remove(tree: Any, key: str) -> bool:
    """Removes the field that the key leads to, whole where the key leads into its list; False where there is no such field."""
    path = parts(key)
    while path and isinstance(path[-1], int):
        path.pop()
    for part in path[:-1]:
        tree = _child(tree, part)
    return isinstance(tree, dict) and bool(path) and tree.pop(path[-1], None) is not None


def _child(tree: Any, part: str | int) -> Any:
    if isinstance(tree, dict):
        return tree.get(part)
    return tree[part] if isinstance(tree, list) and isinstance(part, int) and part < len(tree) else None
