"""One row of a dataset -> one Prompt, under whatever names its columns have.

Read as they are: verl's parquet schema (nested columns as structs or as JSON strings), TRL's (``prompt`` and free
columns), SDFT's and OPSD's (``problem``, ``solution``), swift's (``messages``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from onpolicy.types import Message, Prompt

QUESTION = ("messages", "prompt", "problem", "question")
ANSWER = ("answer", "ground_truth", "reward_model.ground_truth", "label", "final_answer")
SOLUTION = ("solution", "privileged_context", "reference_solution", "extra_info.solution", "extra_info.answer_cot")
IDENTITY = ("id", "problem_id", "extra_info.index", "idx")
NESTED = ("messages", "prompt", "reward_model", "extra_info")
"""Columns that some files store as JSON text."""


def to_prompt(row: Mapping[str, Any], *, default_id: str, prompt_template: str | None) -> Prompt:
    """Raises ValueError saying which column is wrong and what is expected."""
    row = {name: _unpacked(name, value) if name in NESTED else value for name, value in row.items()}
    for name, value in row.items():
        if not _is_text(value) or not _is_text(name):
            raise ValueError(
                f"column {name!r} holds half a character (a lone surrogate), which is no text: {_short(value)}"
            )
    column = next((name for name in QUESTION if row.get(name) is not None), None)
    if column is None:
        raise ValueError(
            f"no prompt: expected one of the columns {', '.join(QUESTION)}; it has {', '.join(map(repr, row)) or 'none'}"
        )
    messages = _messages(row[column], column, prompt_template)
    identity = _first(row, IDENTITY)
    fields = dict(row) | {"prompt": row[column]}
    if isinstance(row[column], str) and fields.get("problem") is None:
        fields["problem"] = row[column]
    for name, columns in (("answer", ANSWER), ("solution", SOLUTION)):
        value = _first(row, columns)
        if value is not None:
            fields[name] = value if isinstance(value, str) else _as_text(value)
    return Prompt(id=default_id if identity is None else str(identity), messages=messages, fields=fields)


def unique_ids(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The second row with an id gets ``<id>#2``; ``fields["problem_id"]`` keeps saying which problem it is."""
    seen: dict[str, int] = {}
    result = []
    for prompt in prompts:
        seen[prompt.id] = seen.get(prompt.id, 0) + 1
        name = prompt.id if seen[prompt.id] == 1 else f"{prompt.id}#{seen[prompt.id]}"
        fields = {**prompt.fields, "problem_id": prompt.fields.get("problem_id", prompt.id)}
        result.append(Prompt(id=name, messages=prompt.messages, fields=fields))
    return result


def _messages(value: Any, column: str, prompt_template: str | None) -> tuple[Message, ...]:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"column {column!r} is empty, expected a problem")
        return ({"role": "user", "content": _filled(prompt_template, value)},)
    if not isinstance(value, list) or not value:
        raise ValueError(f"column {column!r} holds {_short(value)}, expected text or a list of messages")
    return tuple(_message(item, column) for item in value)


def _message(item: Any, column: str) -> Message:
    if (
        not isinstance(item, Mapping)
        or not isinstance(item.get("role"), str)
        or not isinstance(item.get("content"), str)
    ):
        raise ValueError(
            f"column {column!r} holds the message {_short(item)}, expected a role and a content, both text"
        )
    if not item["content"].strip():
        raise ValueError(f"column {column!r} holds an empty {item['role']} message")
    return {"role": item["role"], "content": item["content"]}


def _is_text(value: Any) -> bool:
    """Whether every string in it can be encoded; JSON can write some that cannot."""
    if isinstance(value, Mapping):
        return all(_is_text(key) and _is_text(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_text, value))
    if not isinstance(value, str):
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _filled(template: str | None, problem: str) -> str:
    """The problem as it is, or without white space around it in place of ``{problem}``; other braces are left alone."""
    return problem if template is None else template.replace("{problem}", problem.strip())


def _unpacked(column: str, value: Any) -> Any:
    """JSON text that holds an object or a list of objects becomes one; other text, `[1, 2]` and `{a, b}` too, stays text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        inner = json.loads(value)
    except (ValueError, RecursionError) as error:
        if value.lstrip().startswith(('[{"', '{"')):
            raise ValueError(f"column {column!r} holds broken JSON: {_short(value)} ({error})") from error
        return value
    is_nested = isinstance(inner, dict) or (isinstance(inner, list) and any(isinstance(item, dict) for item in inner))
    return inner if is_nested else value


def _first(row: Mapping[str, Any], paths: Iterable[str]) -> Any:
    for path in paths:
        value: Any = row
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and value != "":
            return value
    return None


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
