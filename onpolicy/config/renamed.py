"""Names that a config can no longer use, and what they are called now. An old name is refused with the new one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

RENAMED: dict[str, str] = {
    "*.view": "context",
    "*.reference_view": "reference_context",
    "*.contrast_views": "contrast_contexts",
    "term start_kl": "ref_kl",
}
"""Old name -> new name, one line each:

    "roles"                  a section
    "generator.staleness"    a key, with its section; list items are written ``objective[]``
    "*.view"                 an option, wherever it stands; the new name is that of the option alone
    "term start_kl"          a plug-in, after its kind; in the same way "lexicon A" and "metric epistemic/A/*"

A ``*`` in the new name stands for what the ``*`` in the old one stood for.
"""


def renamed_key(key: str, value: Any = None) -> str | None:
    """What to say about a key that was renamed, or None.

    Args:
        value: what the config gives there; of a section, the keys in it that were renamed as well are named
    """
    section, _, last = key.rpartition(".")
    new = _new_name(re.sub(r"\[\d+\]", "[]", key)) or _new_name(f"*.{last}")
    if new is None:
        return None
    if f"*.{last}" in RENAMED and section:
        new = f"{section}.{new}"
    inner = {f"{key}.{name}": _new_name(f"{key}.{name}") for name in value} if isinstance(value, Mapping) else {}
    also = ", ".join(f"{old} is {now}" for old, now in inner.items() if now)
    return f"{key}: unknown key. It is called {new} now{f' ({also})' if also else ''}."


def renamed_name(kind: str, name: str) -> str:
    """`` It is called 'x' now.`` for a plug-in, a lexicon or a metric that was renamed, or nothing."""
    new = _new_name(f"{kind} {name}")
    return f" It is called {new!r} now." if new else ""


def _new_name(old: str) -> str | None:
    if old in RENAMED:
        return RENAMED[old]
    for pattern, new in RENAMED.items():
        if "*" in pattern and not pattern.startswith("*.") and fnmatchcase(old, pattern):
            before, _, after = pattern.partition("*")
            return new.replace("*", old[len(before) : len(old) - len(after)])
    return None
