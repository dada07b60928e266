"""Tools that a conversation offers and calls, for the chat template."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onpolicy.types import Message

OF_A_MESSAGE = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""What chat templates read of a message besides its role and content."""
HANDED_ON = ("tools", *OF_A_MESSAGE)
"""The same, with the tools that the first message carries for the conversation."""


def extras(message: Message, text: Callable[[str], str]) -> dict[str, Any]:
    """What a message holds for the template besides its role and content, with ``text`` applied to every text in it."""
    return {name: _mapped(message[name], text) for name in HANDED_ON if name in message}  # type: ignore[literal-required]


def apart(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """The messages without the tools that one of them carries, and these."""
    tools = [tool for message in messages for tool in message.get("tools", ())]
    return [{name: value for name, value in message.items() if name != "tools"} for message in messages], tools or None


def left_out(messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> str | None:
    """`tools` or `tool_calls`, if messages hold some and the template writes the same without them."""
    for what in ("tools", "tool_calls"):
        if any(what in message for message in messages):
            without: Any = [{name: value for name, value in m.items() if name != what} for m in messages]
            with contextlib.suppress(ValueError):  # the template needs them: it reads them
                if render(without) == render(messages):
                    return what
    return None


def _mapped(value: Any, text: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return {_mapped(key, text): _mapped(item, text) for key, item in value.items()}
    return [_mapped(item, text) for item in value] if isinstance(value, list | tuple) else value
