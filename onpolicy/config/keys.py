"""Full keys of a config, as messages and overrides write them: ``objective[0].weight``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


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
