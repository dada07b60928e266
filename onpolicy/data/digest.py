"""What problems are, by content: the same text for the same messages with the same columns, in every process."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from onpolicy.types import Prompt
from onpolicy.utils.hashes import short_hash

SHORT = 8
"""Characters of a problem's digest that ``DatasetDigest`` keeps: enough to say which one differs."""


def digest(prompt: Prompt) -> str:
    """A short hash, the same for the same messages with the same fields, wherever in its file the problem stands."""
    content = {f.name: getattr(prompt, f.name) for f in dataclasses.fields(prompt) if f.name != "id"}
    content["fields"] = {
        name: value for name, value in prompt.fields.items() if name != "problem_id"
    }  # often a row's number
    return short_hash(json.dumps(content, sort_keys=True, default=_plain).encode())


def dataset_digest(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """``rows``, the number of problems; ``digest``, of all of them in their order; ``each``, the beginnings of their own."""
    each = [digest(prompt) for prompt in prompts]
    whole = short_hash("".join(each).encode())
    return {"rows": len(each), "digest": whole, "each": "".join(text[:SHORT] for text in each)}


def dataset_difference(before: dict[str, Any], prompts: Sequence[Prompt]) -> str | None:
    """In what the problems differ from those of a ``dataset_digest``; None where they are the same."""
    now = dataset_digest(prompts)
    if before["digest"] == now["digest"]:
        return None
    there, here = ([side["each"][i : i + SHORT] for i in range(0, len(side["each"]), SHORT)] for side in (before, now))
    rows = f"{len(there)} problems there, {len(here)} here" if len(there) != len(here) else f"{len(here)} problems"
    if sorted(there) == sorted(here):
        return f"{rows}, in another order"
    first = next((i for i, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), min(len(there), len(here)))
    name = f", {prompts[first].id!r}" if first < len(prompts) else ""
    return f"{rows}; the first that differs is number {first + 1}{name}"


def _plain(value: Any) -> Any:
    """What JSON does not know: sets in order, bytes and arrays by content, anything else as text without its place in memory."""
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):
        return value.tolist()
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
