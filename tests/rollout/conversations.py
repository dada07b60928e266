"""Environments for tests, and what is needed to hold conversations with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from onpolicy.protocols import SampledReply, Student
from onpolicy.rollout.episode import NoRoomLeft
from onpolicy.types import EnvironmentOutcome, Message, Prompt


def as_said(reply: SampledReply) -> Message:
    return {"role": "assistant", "content": reply.text}


def talk(id: str, **fields: object) -> Prompt:
    return Prompt(id=id, messages=({"role": "user", "content": f"Question {id}?"},), fields=fields, interactive=True)


class Asks:
    """Asks ``turns`` times and counts the letters of the last reply; ``fields["fault"]`` says how a rollout goes wrong, after its first
    reply."""

    def __init__(self, *, turns: int = 2) -> None:
        self.turns = turns

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        messages: list[Message] = list(prompt.messages)
        reply: Message = {"role": "assistant", "content": ""}
        for turn in range(self.turns):
            try:
                reply = await student.reply(messages, as_said)
            except NoRoomLeft:
                break
            if fault := prompt.fields.get("fault"):
                messages = await getattr(self, str(fault))(messages, reply)
            await asyncio.sleep(0.001 * (len(prompt.id) % 3))
            messages = [*messages, reply, {"role": "user", "content": f"Again ({turn})."}]
        letters = float(sum(c.isalpha() for c in reply["content"]))
        return EnvironmentOutcome(reward=letters, metrics={"letters": letters}, feedback=f"{letters:g} letters")

    async def raises(self, messages: Sequence[Message], reply: Message) -> list[Message]:
        raise KeyError("no such tool")

    async def exits(self, messages: Sequence[Message], reply: Message) -> list[Message]:
        raise SystemExit(3)

    async def interrupts(self, messages: Sequence[Message], reply: Message) -> list[Message]:
        raise KeyboardInterrupt

    async def waits(self, messages: Sequence[Message], reply: Message) -> list[Message]:
        await asyncio.sleep(3600)
        return []

    async def will_not_end(self, messages: Sequence[Message], reply: Message) -> list[Message]:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue

    async def computes(self, messages: Sequence[Message], reply: Message) -> list[Message]:
        while True:
            sum(range(1000))

    async def computes_in_a_task(self, messages: Sequence[Message], reply: Message) -> list[Message]:
        return await asyncio.wait_for(self.computes(messages, reply), 3600)

    async def sleeps(self, messages: Sequence[Message], reply: Message) -> list[Message]:
        time.sleep(4)
        return []

    async def forgets_the_problem(self, messages: Sequence[Message], reply: Message) -> list[Message]:
        return [{"role": "user", "content": "Something else?"}]


class Silent(Asks):
    """Answers with no text."""

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        reply = await student.reply(prompt.messages, as_said)
        await student.reply([*prompt.messages, reply, {"role": "user", "content": " \n"}], as_said)
        return EnvironmentOutcome(reward=1.0)


class AsksTwice(Asks):
    """Asks for two replies at a time."""

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        await asyncio.gather(student.reply(prompt.messages, as_said), student.reply(prompt.messages, as_said))
        return EnvironmentOutcome(reward=1.0)


class NeverAsks(Asks):
    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        return EnvironmentOutcome(reward=1.0)


def asks(*, turns: int = 2) -> Asks:
    """Plug-in of kind ``environment``."""
    return Asks(turns=turns)


def talks(*, faults: dict[str, str] | None = None, problems: int = 4) -> list[Prompt]:
    """Plug-in of kind ``data``: problems ``p0``, ``p1``, ..., and what goes wrong in some of them."""
    given = faults or {}
    return [talk(f"p{i}", **({"fault": given[f"p{i}"]} if f"p{i}" in given else {})) for i in range(problems)]


class KeepsWhatBelongsToALoop(Asks):
    """A lock, and a worker that answers through a queue, made at the first episode and kept."""

    def __init__(self, *, turns: int = 2) -> None:
        super().__init__(turns=turns)
        self._queue: asyncio.Queue[asyncio.Future[None]] | None = None
        self._lock = asyncio.Semaphore(1)

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        if self._queue is None:
            self._queue = asyncio.Queue()
            self._worker = asyncio.create_task(self._work())
        answered = asyncio.get_running_loop().create_future()
        await self._queue.put(answered)
        async with self._lock:
            await asyncio.sleep(0.01)
        await answered
        return await super().run(prompt, student)

    async def _work(self) -> None:
        assert self._queue is not None
        while True:
            (await self._queue.get()).set_result(None)


class Retries(Asks):
    """Gives up waiting for the first reply, and asks again."""

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        with suppress(TimeoutError):
            await asyncio.wait_for(student.reply(prompt.messages, as_said), 0.001)
        reply = await student.reply(prompt.messages, as_said)
        await student.reply([*prompt.messages, reply, {"role": "user", "content": "And?"}], as_said)
        return EnvironmentOutcome(reward=1.0)


class GivesUp(Asks):
    """Is content with what there is, once the reply to a conversation that begins anew takes too long."""

    patience = 0.001
    """Seconds."""

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        reply = await student.reply(prompt.messages, as_said)
        anew: list[Message] = [*prompt.messages, {"role": "user", "content": "Begin again."}]
        with suppress(TimeoutError):
            await asyncio.wait_for(student.reply(anew, as_said), self.patience)
        return EnvironmentOutcome(reward=float(len(reply["content"])))


class GivesUpLater(GivesUp):
    """The same, once the reply has surely been asked for."""

    patience = 0.1


class Shortens(Asks):
    """Drops what was said where no room is left, and asks once more."""

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        messages: list[Message] = list(prompt.messages)
        try:
            for _ in range(30):
                messages += [await student.reply(messages, as_said), {"role": "user", "content": "x" * 20}]
        except NoRoomLeft:
            await student.reply([*prompt.messages, {"role": "user", "content": "In short?"}], as_said)
        return EnvironmentOutcome(reward=1.0)


class Says(Asks):
    """Ends with this outcome."""

    def __init__(self, **outcome: Any) -> None:
        super().__init__()
        self._outcome = outcome

    async def run(self, prompt: Prompt, student: Student) -> EnvironmentOutcome:
        await student.reply(prompt.messages, as_said)
        return EnvironmentOutcome(**self._outcome)
