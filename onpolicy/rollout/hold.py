"""One episode from its start to its rollout, in whatever event loop it is held."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from math import isfinite

from onpolicy.protocols import Environment, SampledReply
from onpolicy.rollout.episode import Episode, EpisodeError
from onpolicy.types import EnvironmentOutcome, Message, Prompt, Rollout
from onpolicy.utils.errors import first_line

CANCEL_SECONDS = 5.0
"""How long an environment that is cancelled may take to end."""
LOOK_SECONDS = 1.0
"""How often an episode is looked at."""
Sample = Callable[[Prompt], Awaitable[Rollout]]
"""One turn of the student."""


async def hold(
    environment: Environment, prompt: Prompt, episode: Episode, sample: Sample, *, timeout: float
) -> Rollout:
    """The rollout, however the episode ends; one whose environment failed says so in its outcome.

    Args:
        environment: answers
        prompt: the problem
        episode: keeps the tokens
        sample: a turn of the student
        timeout: seconds that the environment may take between two replies
    """
    student = _Student(episode, sample)
    task = asyncio.ensure_future(_run(environment, prompt, student))
    try:
        return await _watched(task, student, episode, timeout)
    finally:
        if not task.done():  # nobody wants this episode any more
            task.cancel()


async def _watched(
    task: asyncio.Task[EnvironmentOutcome], student: _Student, episode: Episode, timeout: float
) -> Rollout:
    while not task.done():
        left = timeout - student.silent_for()
        if left <= 0:
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_SECONDS)
            return episode.rollout(EnvironmentOutcome(failure=f"it said nothing for {timeout:g} seconds"))
        began, patience = time.monotonic(), min(left, LOOK_SECONDS)
        await asyncio.wait({task}, timeout=patience)
        student.forgive(time.monotonic() - began - patience)
    if student.lost is not None:
        if not task.cancelled():
            task.exception()  # the same, or what the environment made of it
        raise student.lost
    return episode.rollout(_outcome(task, episode))


async def _run(environment: Environment, prompt: Prompt, student: _Student) -> EnvironmentOutcome:
    """A task of its own, so that also what an environment raises before its first wait is its task's."""
    try:
        return await environment.run(prompt, student)
    except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and every other episode with it
        return EnvironmentOutcome(failure=f"{type(error).__name__}: {error}")


def _outcome(task: asyncio.Task[EnvironmentOutcome], episode: Episode) -> EnvironmentOutcome:
    if task.cancelled():
        return EnvironmentOutcome(failure="it was cancelled")
    error = task.exception()
    if error is not None:
        return EnvironmentOutcome(failure=f"{type(error).__name__}: {first_line(error)}")
    outcome = task.result()
    if not isinstance(outcome, EnvironmentOutcome):
        return EnvironmentOutcome(failure=f"it returned a {type(outcome).__name__}, expected an EnvironmentOutcome")
    if not outcome.failure:
        return replace(outcome, failure=_fault(outcome, episode))
    return outcome


def _fault(outcome: EnvironmentOutcome, episode: Episode) -> str:
    """What is wrong with an outcome; empty where nothing is."""
    if not episode.turns:
        return "it never asked the student"
    numbers = {"its reward": outcome.reward} if outcome.reward is not None else {}
    for name, value in (numbers | {f"its metric {n!r}": v for n, v in outcome.metrics.items()}).items():
        if not isinstance(value, int | float) or not isfinite(value):
            return f"{name} is {value!r}, expected a finite number"
    return ""


class _Student:
    """The ``protocols.Student`` of one episode."""

    def __init__(self, episode: Episode, sample: Sample) -> None:
        self._episode, self._sample = episode, sample
        self.lost: BaseException | None = None
        """Why it could not be sampled: no fault of the environment."""
        self._heard: float | None = time.monotonic()
        """When the environment's turn began; None while the student's lasts."""

    def silent_for(self) -> float:
        """Seconds since it was the environment's turn; 0 while it is the student's."""
        return 0.0 if self._heard is None else time.monotonic() - self._heard

    def forgive(self, seconds: float) -> None:
        """Leaves out the time for which another episode held the loop."""
        if self._heard is not None:
            self._heard += max(seconds, 0.0)

    async def reply(self, messages: Sequence[Message], read: Callable[[SampledReply], Message]) -> Message:
        if self._heard is None:
            raise EpisodeError("the environment asked for two replies at a time")
        prompt = self._episode.ask(messages)
        self._heard = None
        try:
            rollout = await self._sample(prompt)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.lost = error
            raise
        finally:
            self._heard = time.monotonic()
        return self._episode.add_reply(rollout, read)
