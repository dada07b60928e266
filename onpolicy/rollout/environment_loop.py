"""Many conversations in one event loop on a thread of its own, and what they tell the thread that samples.

An environment that waits for ever is cancelled. One that never gives the loop back, because it computes or sleeps without awaiting, can
only be left behind: its rollout fails, and the others begin again in another loop, where they are sampled as before.
"""

from __future__ import annotations

import asyncio
import ctypes
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from onpolicy.protocols import Environment
from onpolicy.rollout.episode import Episode
from onpolicy.rollout.hold import CANCEL_SECONDS, hold
from onpolicy.types import Prompt, Rollout
from onpolicy.utils.errors import UserError

CONVERSATION: ContextVar[int | None] = ContextVar("conversation", default=None)
"""The number of the one that the code at work belongs to."""


class LoopHeld(UserError, RuntimeError):
    """The loop does not turn, and no conversation is at work in it."""


@dataclass(frozen=True)
class Turn:
    """A reply that a conversation waits for."""

    prompt: Prompt
    answer: Future[Rollout]


@dataclass(frozen=True)
class Finished:
    """A conversation's end."""

    number: int
    rollout: Rollout


@dataclass(frozen=True)
class EpisodeStart:
    """A conversation that is to be held."""

    prompt: Prompt
    new: Callable[[], Episode]


class EnvironmentLoop:
    """Holds conversations; what they need and how they end comes out of ``events``."""

    def __init__(self, environment: Environment, starts: dict[int, EpisodeStart], *, timeout: float) -> None:
        """
        Args:
            environment: whose they are
            starts: by number
            timeout: seconds that an environment may take between two replies
        """
        self.events: queue.Queue[Turn | Finished | BaseException] = queue.Queue()
        """What happens; an exception where the student could not be sampled, or an episode's tokens are none."""
        self._environment, self._starts, self._timeout = environment, starts, timeout
        self._loop = asyncio.new_event_loop()
        self._tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()
        """Episode of each task, of those too that an environment makes."""
        self._loop.set_task_factory(self._task)
        self._asked_at: float | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="environment", daemon=True)
        self._thread.start()

    def blocked_by(self) -> int | None:
        """The conversation that has held the loop for longer than the timeout; None while the loop turns. To be called now and then.

        Raises:
            LoopHeld: it is none of them.
        """
        asked_at, now = self._asked_at, time.monotonic()
        if asked_at is None:
            self._asked_at = now
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._answer)
            return None
        if now - asked_at <= self._timeout:
            return None
        task = asyncio.current_task(self._loop)
        number = None if task is None else self._tasks.get(task)
        if number is None and self._asked_at is not None:
            raise LoopHeld(
                f"environment: something that is no conversation has held its thread for {self._timeout:g} seconds"
            )
        return number

    def abandon(self) -> None:
        """Ends the thread as soon as what holds it lets go; what it says from now on is not heard."""
        self._abandoned, self.events = True, queue.Queue()
        self._loop.set_exception_handler(_ignore)
        identity = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(SystemExit))

    def close(self) -> None:
        """Cancels what is left; the thread ends with it."""

        def cancel() -> None:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()

        if self._thread.is_alive() and not self._abandoned:
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(cancel)
            self._thread.join(CANCEL_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        tasks = [self._loop.create_task(self._hold(number, start)) for number, start in self._starts.items()]
        with suppress(SystemExit):  # from ``abandon``
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.set_exception_handler(_ignore)  # what would not be cancelled is left behind
        self._loop.close()

    def _answer(self) -> None:
        self._asked_at = None

    def _task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
        """Every task of the loop; it belongs to the conversation of whoever makes it."""
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **named)
        number = CONVERSATION.get()
        if number is not None:
            self._tasks[task] = number
        return task

    async def _hold(self, number: int, start: EpisodeStart) -> None:
        """One episode, until its end is told."""
        CONVERSATION.set(number)

        async def sample(prompt: Prompt) -> Rollout:
            answer: Future[Rollout] = Future()
            self.events.put(Turn(prompt, answer))
            return await asyncio.wrap_future(answer)

        try:
            rollout = await hold(self._environment, start.prompt, start.new(), sample, timeout=self._timeout)
        except BaseException as error:
            self.events.put(error)
            raise
        self.events.put(Finished(number, rollout))


def _ignore(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Says nothing of tasks that are destroyed."""
