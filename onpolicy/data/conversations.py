"""Conversations, as the columns of datasets hold them, -> messages of the prompt, and the answer that may follow them.

A conversation that ends with the assistant's turn is a question with its answer: the turn is taken out, because in the prompt it would
give the answer away. A turn that the model is to continue says so itself: ``prefix: true``, as in Mistral's and DeepSeek's interfaces.
Earlier turns of the assistant are history and stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onpolicy.data.text import clipped
from onpolicy.data.tools import OF_A_MESSAGE
from onpolicy.types import Message

SPEAKERS = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names, for those that differ from the usual roles."""
ROLES = ("system", "developer", "user", "assistant", "tool")
EXTRAS = (*OF_A_MESSAGE, "prefix")
"""What a message may hold besides its role and content."""


@dataclass(frozen=True)
class Conversation:
    """What the student reads, and what answered it in the dataset."""

    messages: tuple[Message, ...]
    answer: str | None = None
    """The text of the assistant's turn at the end; None where there is none, or where it is a tool call."""
    answered: bool = False
    """Whether there was such a turn."""


def read_conversation(value: Any, column: str) -> Conversation:
    """Raises ValueError saying what of the column is wrong."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"column {column!r} holds {clipped(value)}, expected text or a list of messages")
    messages = [_message(item, column) for item in value]
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant" and not messages[end - 1].get("prefix"):
        end -= 1
    if not any(message["role"] != "assistant" for message in messages[:end]):
        raise ValueError(f"column {column!r} holds the assistant's turns alone, expected a question before them")
    texts = [m["content"] for m in messages[end:] if m["content"].strip() and not m.get("tool_calls")]
    return Conversation(tuple(messages[:end]), "\n\n".join(texts) or None, answered=end < len(messages))


def said_by_assistant(value: Any) -> str | None:
    """The text of the assistant's messages, of a value that is a list of such messages: TRL's ``completion``; None for any other."""
    alone = (
        isinstance(value, list)
        and value
        and all(isinstance(m, Mapping) and m.get("role") == "assistant" for m in value)
    )
    texts = [m.get("content") for m in value] if alone else []
    return "\n\n".join(texts) if texts and all(isinstance(text, str) for text in texts) else None


def offer_tools(messages: tuple[Message, ...], tools: Any) -> tuple[Message, ...]:
    """The messages, of which the first carries the tools that the model is offered.

    Raises:
        ValueError: they are no list of mappings.
    """
    if not tools:
        return messages
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"column 'tools' holds {clipped(tools)}, expected a list of functions as JSON schemas")
    first: Message = {**messages[0], "tools": _given(tools)}
    return (first, *messages[1:])


def _message(item: Any, column: str) -> Message:
    if isinstance(item, Mapping) and "role" not in item and "from" in item:
        item = {"role": SPEAKERS.get(item["from"], item["from"]), "content": item.get("value")}
        if item["role"] not in ROLES:
            raise ValueError(f"column {column!r} holds a turn of {item['role']!r}, expected human, gpt or system")
    if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
        raise _malformed(item, column)
    if item.get("function_call"):
        raise ValueError(f"column {column!r} holds a 'function_call', expected 'tool_calls', which chat templates know")
    extras = {name: _given(item[name]) for name in EXTRAS if item.get(name)}
    content = _text_of_parts(item.get("content"), column)
    if content is None and "tool_calls" in extras:
        content = ""
    if not isinstance(content, str):
        raise _malformed(item, column)
    if not content.strip() and item["role"] != "system" and "tool_calls" not in extras:  # no system text is a choice
        raise ValueError(f"column {column!r} holds an empty {item['role']} message")
    return {"role": item["role"], "content": content, **extras}  # type: ignore[typeddict-item]


def _malformed(item: Any, column: str) -> ValueError:
    return ValueError(f"column {column!r} holds the message {clipped(item)}, expected a role and a content, both text")


def _given(value: Any) -> Any:
    """Without the empty fields that Arrow adds to a struct, because other rows have them."""
    if isinstance(value, Mapping):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def _text_of_parts(content: Any, column: str) -> Any:
    """A content in parts, ``[{"type": "text", "text": ...}]``, as one text; anything else as it is."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"column {column!r} holds a message with a part of type {kind!r}, expected text alone")
    return "".join(part["text"] for part in content)
