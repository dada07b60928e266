"""Messages and tools of verifiers as those of chat templates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onpolicy.types import Message


def to_messages(messages: Iterable[Any], tools: Sequence[Any] | None = None) -> tuple[Message, ...]:
    """Messages of verifiers; the first one carries the tools that are offered.

    Raises:
        ValueError: one holds something else than text.
    """
    found = [_message(message) for message in messages]
    if tools:
        found[0] = {**found[0], "tools": [_schema(tool) for tool in tools]}
    return tuple(found)


def _message(message: Any) -> Message:
    made: Message = {"role": message.role, "content": _text(message.content)}
    calls = getattr(message, "tool_calls", None)
    if calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in calls
        ]
    for name in ("tool_call_id", "name", "reasoning_content"):
        value = getattr(message, name, None)
        if value:
            made[name] = value  # type: ignore[literal-required]
    return made


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part if isinstance(part, Mapping) else part.model_dump() for part in content]
    if kinds := sorted({str(part.get("type")) for part in parts} - {"text"}):
        raise ValueError(f"a message holds {', '.join(kinds)}, expected text")
    return "".join(part["text"] for part in parts)


def _arguments(text: str) -> Any:
    """As templates read them: a mapping, which they write as JSON; text that is no JSON as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _schema(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
