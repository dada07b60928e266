"""Values of a dataset as text, written exactly: what contexts show and what our graders compare."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def as_text(value: Any) -> str:
    """A value as text: numbers without exponent and in full, bytes as UTF-8, dates in ISO 8601, a list of one item as the item, other
    lists and mappings as JSON.

    Raises:
        ValueError: it is no finite number and no text, or holds such a value.
    """
    if isinstance(value, str):
        return value
    if hasattr(value, "tolist"):  # an array, tensor or scalar of NumPy or torch
        return as_text(value.tolist())
    if isinstance(value, list | tuple) and len(value) == 1 and not isinstance(value[0], list | tuple | Mapping):
        return as_text(value[0])
    if isinstance(value, list | tuple | Mapping):
        return _json(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"holds bytes that are not UTF-8: {clipped(value)}") from error
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float | Decimal):
        return _decimal(value)
    if isinstance(value, int):  # truth values too
        return str(value)
    raise ValueError(f"holds {clipped(value)}, a {type(value).__name__}, expected text or a number")


def clipped(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _decimal(value: float | Decimal) -> str:
    if not math.isfinite(value):
        raise ValueError(f"holds {value}, expected text or a finite number")
    digits = format(Decimal(repr(value)) if isinstance(value, float) else value, "f")
    return digits.removesuffix(".0") if isinstance(value, float) else digits


def _json(value: Any) -> str:
    """As ``json.dumps``, for the values that Parquet has too; its numbers are written as ``as_text`` writes them."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k), ensure_ascii=False)}: {_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_json, value)) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = as_text(value)
    return text if isinstance(value, int | float | Decimal) else json.dumps(text, ensure_ascii=False)
