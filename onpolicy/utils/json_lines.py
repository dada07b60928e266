"""Files of JSON lines: one object a line, written while something else may read them, by processes that may be killed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onpolicy.utils.errors import UserError


class BrokenLine(UserError, ValueError):
    """A line that is no JSON object although another follows it; names the file and the line."""


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, in order; none where there is no file.

    The last line is left out where it was cut short: its process was killed, or is still writing it.

    Raises:
        BrokenLine: another line is no JSON object.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, got {line[:80].decode(errors='replace')!r}")
        except ValueError as error:
            if any(lines[number:]):
                raise BrokenLine(
                    f"{str(path)!r}, line {number}: {error}. Only a last line can be cut short; put the file back, or delete the line."
                ) from error
            break
        rows.append(row)
    return rows


def finite(value: Any) -> Any:
    """Numbers that are not finite as null, at any depth: JSON has no other word for them."""
    if isinstance(value, Mapping):
        return {name: finite(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
