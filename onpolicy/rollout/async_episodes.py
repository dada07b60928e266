"""Episodes for a sampler that is asynchronous itself: each conversation is awaited in the sampler's event loop.

The environment has a loop on a thread of its own (``environment_loop``): one that never gives it back costs its rollout there too, and
nobody else's. One turn is asked of the sampler at a time, in the loop of whoever waits for the rollout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from onpolicy.protocols import Environment
from onpolicy.rollout.environment_loop import EnvironmentLoop, EpisodeStart, Event, Finished, Turn
from onpolicy.rollout.environments import TICK, Rules
from onpolicy.rollout.episode import Episode
from onpolicy.rollout.hold import Sample
from onpolicy.types import EnvironmentOutcome, Prompt, Rollout


class AsyncEpisodes:
    """Holds conversations with an environment, any number at a time."""

    def __init__(self, make: Callable[[], Environment], rules: Rules) -> None:
        """
        Args:
            make: the environment, which answers; again where one had to be left behind
            rules: what holds for every conversation
        """
        self._make, self._rules = make, rules
        self._loop = self._new_loop()  # what cannot be made is told before anything is sampled

    async def hold(self, prompt: Prompt, index: int, sample: Sample, *, max_tokens: int) -> Rollout:
        """One rollout, however its conversation ends; a prompt that is not interactive has one turn.

        Args:
            prompt: the problem
            index: of the rollout in its group
            sample: a turn of the student; awaited in the running loop
            max_tokens: longest completion of a segment, observed tokens included
        """
        if not prompt.interactive:
            return await sample(prompt)
        limits = {"max_tokens": max_tokens, "window": self._rules.window}
        start = EpisodeStart(index, prompt, partial(Episode, prompt, index, self._rules.renderer, **limits))
        replies: set[asyncio.Task[None]] = set()
        try:
            while True:
                loop = self._current_loop()
                rollout = await self._play(loop, start, sample, replies)
                if rollout is not None:
                    return rollout
                if loop.left_by is start:
                    why = f"it held its thread for {self._rules.timeout:g} seconds"
                    return start.new().rollout(EnvironmentOutcome(failure=why))
        finally:  # replies that nobody waits for any more: whoever has the rollout may put the engine to sleep
            if replies:
                await asyncio.wait(replies)

    def close(self) -> None:
        """Ends what is left, and the environment's thread."""
        self._loop.close()

    async def _play(
        self, loop: EnvironmentLoop, start: EpisodeStart, sample: Sample, replies: set[asyncio.Task[None]]
    ) -> Rollout | None:
        """The episode's rollout; None where the loop was left behind, for this episode or for another."""
        here, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the sampler's loop has just been closed
                here.call_soon_threadsafe(events.put_nowait, event)

        held = loop.hold([start], tell)
        try:
            while not loop.abandoned:
                try:
                    event = await asyncio.wait_for(events.get(), TICK)
                except TimeoutError:
                    culprit = loop.blocked_by()
                    if culprit is not None:
                        loop.abandon(culprit)
                    continue
                if isinstance(event, Turn):
                    task = asyncio.create_task(_answer(event, sample))
                    replies.add(task)
                    task.add_done_callback(replies.discard)
                elif isinstance(event, Finished):
                    return event.rollout
                else:
                    raise event
        finally:
            loop.cancel(held)
        return None

    def _new_loop(self) -> EnvironmentLoop:
        return EnvironmentLoop(self._make(), timeout=self._rules.timeout)

    def _current_loop(self) -> EnvironmentLoop:
        if self._loop.abandoned:
            self._loop = self._new_loop()
        return self._loop


async def _answer(turn: Turn, sample: Sample) -> None:
    """Samples a reply, or says why there is none."""
    if not turn.answer.set_running_or_notify_cancel():  # its episode does not wait for it any more
        return
    try:
        turn.answer.set_result(await sample(turn.prompt))
    except BaseException as error:
        turn.answer.set_exception(error)
        if not isinstance(error, Exception):
            raise
