"""The event loop in which episodes are held, on a thread of its own for as long as the environment lives.

An environment may keep what belongs to a loop (locks, clients, tasks), so all calls of a generator share one. An episode that waits for
ever is cancelled. One that never gives the loop back, because it computes or sleeps without awaiting, can only be left behind with its loop
and its environment: it fails, and the others begin again in another loop, where they are sampled as before.
"""

from __future__ import annotations

import asyncio
import ctypes
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from onpolicy.protocols import Environment
from onpolicy.rollout.episode import Episode
from onpolicy.rollout.hold import CANCEL_SECONDS, hold
from onpolicy.types import Prompt, Rollout
from onpolicy.utils.errors import UserError


class LoopLost(UserError, RuntimeError):
    """The loop does not turn any more, and that is no episode's doing."""


class _Abandoned(BaseException):
    """Raised in a thread that is left behind."""


@dataclass(frozen=True)
class Turn:
    """A reply that an episode waits for."""

    prompt: Prompt
    answer: Future[Rollout]


@dataclass(frozen=True, eq=False)
class EpisodeStart:
    """An episode that is to be held."""

    number: int
    prompt: Prompt
    new: Callable[[], Episode]


@dataclass(frozen=True)
class Finished:
    """An episode's end."""

    number: int
    rollout: Rollout


Event = Turn | Finished | BaseException
"""What happens to an episode; an exception where the student could not be sampled, or the episode's tokens are none."""


@dataclass(frozen=True)
class Held:
    """The episodes of one call."""

    events: queue.Queue[Event] = field(default_factory=queue.Queue)
    """What happens, unless somebody else is told."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


EPISODE: ContextVar[EpisodeStart | None] = ContextVar("episode", default=None)
"""That which the code at work belongs to."""


class EnvironmentLoop:
    """Holds episodes until it is abandoned or closed."""

    def __init__(self, environment: Environment, *, timeout: float) -> None:
        """
        Args:
            environment: of the episodes
            timeout: seconds that it may take between two replies
        """
        self.abandoned = False
        self.left_by: EpisodeStart | None = None
        """The episode for which it was abandoned."""
        self._environment, self._timeout = environment, timeout
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(self._task)
        self._at_work: weakref.WeakKeyDictionary[asyncio.Task[Any], EpisodeStart] = weakref.WeakKeyDictionary()
        """Episode of each task, of those too that an environment makes."""
        self._asked_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="environment", daemon=True)
        self._thread.start()

    def hold(self, starts: Iterable[EpisodeStart], tell: Callable[[Event], None] | None = None) -> Held:
        """Begins episodes; what they need and how they end comes out of the events.

        Args:
            starts: the episodes
            tell: called with each event, on the environment's thread; None: the events are queued
        """
        held = Held()
        told = held.events.put if tell is None else tell

        def begin() -> None:
            held.tasks.extend(self._loop.create_task(self._hold(start, told)) for start in starts)

        self._call(begin)
        return held

    def cancel(self, held: Held) -> None:
        """Ends the episodes of a call that have not ended."""

        def end() -> None:
            for task in held.tasks:
                task.cancel()

        if not self.abandoned:
            self._call(end)

    def blocked_by(self) -> EpisodeStart | None:
        """The episode that has held the loop for longer than the timeout; None while the loop turns. To be called now and then.

        Raises:
            LoopLost: it is none of them, or the thread has ended.
        """
        asked_at, now = self._asked_at, time.monotonic()
        if not self._thread.is_alive() and not self.abandoned:
            raise LoopLost(
                "environment: it has ended the thread in which it runs, by SystemExit in a task of its own or so"
            )
        if asked_at is None:
            self._asked_at = now
            self._call(self._answer)
            return None
        if now - asked_at <= self._timeout:
            return None
        task = asyncio.current_task(self._loop)
        start = None if task is None else self._at_work.get(task)
        if start is None and self._asked_at is not None:
            raise LoopLost(
                f"environment: something that is no episode has held its thread for {self._timeout:g} seconds"
            )
        return start

    def abandon(self, culprit: EpisodeStart) -> None:
        """Ends the thread as soon as what holds it lets go."""
        self.left_by, self.abandoned = culprit, True
        self._loop.set_exception_handler(_ignore)
        self._call(self._loop.stop)
        identity = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(_Abandoned))

    def close(self) -> None:
        """Ends what is left, and the thread."""

        async def end() -> None:
            tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
            self._loop.stop()

        if self._thread.is_alive() and not self.abandoned:
            with suppress(RuntimeError):  # it has just ended
                asyncio.run_coroutine_threadsafe(end(), self._loop)
            self._thread.join(2 * CANCEL_SECONDS)

    def _call(self, function: Callable[[], Any]) -> None:
        with suppress(RuntimeError):  # the loop has just been closed
            self._loop.call_soon_threadsafe(function)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with suppress(_Abandoned, SystemExit):
            self._loop.run_forever()
        self._loop.set_exception_handler(_ignore)  # what would not be cancelled is left behind
        with suppress(_Abandoned, RuntimeError):
            self._loop.close()

    def _answer(self) -> None:
        self._asked_at = None

    def _task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
        """Every task of the loop; it belongs to the episode of whoever makes it."""
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **named)
        start = EPISODE.get()
        if start is not None:
            self._at_work[task] = start
        return task

    async def _hold(self, start: EpisodeStart, tell: Callable[[Event], None]) -> None:
        """One episode, until its end is told."""
        EPISODE.set(start)

        async def sample(prompt: Prompt) -> Rollout:
            answer: Future[Rollout] = Future()
            tell(Turn(prompt, answer))
            return await asyncio.wrap_future(answer)

        try:
            rollout = await hold(self._environment, start.prompt, start.new(), sample, timeout=self._timeout)
        except BaseException as error:
            if not self.abandoned:
                tell(error)
            raise
        if not self.abandoned:
            tell(Finished(start.number, rollout))


def _ignore(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Says nothing of tasks that are destroyed."""
