"""The student as a client of verifiers, in place of one that sends requests to a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import verifiers as vf
from verifiers.clients import Client
from verifiers.types import AssistantMessage, Response, ResponseMessage, ToolCall, Usage

from onpolicy.integrations.verifiers.messages import to_messages
from onpolicy.protocols import SampledReply, Student
from onpolicy.rollout.episode import NoRoomLeft
from onpolicy.types import Message

ReadReply = Callable[[Sequence[int]], Any]
"""Sampled tokens -> what they say and which tools they call, as ``renderers.ParsedResponse``."""


class StudentClient(Client):
    """One conversation's. How it samples is the config's affair: an environment's own sampling arguments are not read."""

    def __init__(self, student: Student, read: ReadReply | None) -> None:
        """
        Args:
            student: the student in this conversation
            read: finds calls of tools in a reply; None where no tools are offered
        """
        super().__init__(student)
        self._student, self._read = student, read

    def setup_client(self, config: Any) -> Any:
        raise TypeError("expected a student, got the configuration of a server")

    async def to_native_tool(self, tool: Any) -> Any:
        return tool

    async def to_native_prompt(self, messages: Any) -> tuple[Any, dict[str, Any]]:
        return messages, {}

    async def get_native_response(
        self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **kwargs: Any
    ) -> SampledReply:
        found: list[SampledReply] = []

        def read(reply: SampledReply) -> Message:
            found.append(reply)
            return to_messages([self._assistant(reply)])[0]

        try:
            await self._student.reply(to_messages(prompt, tools), read)
        except NoRoomLeft as error:
            raise vf.OverlongPromptError(str(error)) from error
        return found[0]

    async def raise_from_native_response(self, response: SampledReply) -> None:
        """Nothing that the student samples is an error."""

    async def from_native_response(self, response: SampledReply) -> Response:
        said, sampled, cut = self._assistant(response), len(response.ids), response.finish_reason == "length"
        message = ResponseMessage(
            **said.model_dump(exclude={"tool_calls"}),
            tool_calls=said.tool_calls,
            finish_reason="length" if cut else "tool_calls" if said.tool_calls else "stop",
            is_truncated=cut,
        )
        usage = Usage(prompt_tokens=0, reasoning_tokens=0, completion_tokens=sampled, total_tokens=sampled)
        return Response(id="student", created=0, model="student", usage=usage, message=message)

    async def close(self) -> None:
        """The generator is the run's."""

    def _assistant(self, reply: SampledReply) -> AssistantMessage:
        if self._read is None:
            return AssistantMessage(content=reply.text)
        parsed = self._read(reply.ids)
        calls = [
            ToolCall(
                id=call.id or f"call_{number}",
                name=call.name,
                arguments=call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments or {}),
            )
            for number, call in enumerate(parsed.tool_calls)
            if call.name and call.status == "ok"
        ]
        if not calls:
            return AssistantMessage(content=reply.text)
        return AssistantMessage(
            content=parsed.content, reasoning_content=parsed.reasoning_content or None, tool_calls=calls
        )
