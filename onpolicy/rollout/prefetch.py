"""Samples rollouts of the next steps while this step is trained; no token may be older than the bound.

With a bound of ``s`` the batches of steps ``m`` to ``m + s`` are on their way when step ``m`` is trained. Batch ``m`` was begun
with weights of version ``m - 1 - s`` or newer and is trained with version ``m - 1``, so none of its tokens is more than ``s``
versions old. Batches are trained in order, and step ``m`` gets the problems it would get with a bound of 0, which is
on-policy: there each batch is sampled when it is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from onpolicy.rollout.sampler import RolloutSampler
from onpolicy.types import Metrics, RolloutGroup, ScoredGroup
from onpolicy.utils.timer import PhaseTimer

Sampled = tuple[list[ScoredGroup], Metrics]


class RolloutPrefetcher:
    """Returns the batch of a step, and keeps the batches of the next steps under way."""

    def __init__(self, rollouts: RolloutSampler, timer: PhaseTimer, *, staleness: int, steps: int) -> None:
        """
        Args:
            rollouts: samples a batch
            timer: of the training; batches on threads of their own are timed by themselves, under ``pipeline/``
            staleness: the bound
            steps: no batch is begun beyond this one
        """
        self.rollouts, self.timer, self.staleness, self.steps = rollouts, timer, staleness, steps
        # dynamic sampling uses a number of problems that is known at its end, so the next batch starts after it
        self._pool = (
            ThreadPoolExecutor(1 if rollouts.batches else staleness + 1, "pipeline") if staleness else InlineExecutor()
        )
        self._batches: dict[int, Future[tuple[Sampled, int]]] = {}
        """By step."""
        self._position: int | None = None
        self._scoring = threading.Lock()

    @property
    def position(self) -> int:
        """Position in the problems after the batch that was returned last: a resumed run goes on from there."""
        return self.rollouts.prompts.position if self._position is None else self._position

    def sample(self, step: int) -> Sampled:
        """The batch of ``step``; raises what went wrong while it was sampled."""
        for number in range(step, min(step + self.staleness, self.steps) + 1):
            if number not in self._batches:
                self._batches[number] = self._start(number)
        batch = self._batches[step]
        if not batch.done():
            with self.timer.phase("wait"):
                batch.exception()
        sampled, self._position = batch.result()
        del self._batches[step]
        return sampled

    def state(self) -> dict[str, Any]:
        """Where a resumed run goes on in its prompts."""
        return self.rollouts.prompts.state() | {"position": self.position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken; to be called when nothing is on its way."""
        self.rollouts.prompts.load_state(state)

    def cancel(self) -> None:
        """Discards the batches that are under way, once they have ended; their problems will be drawn again."""
        self._end()
        self.rollouts.prompts.position, self._position = self.position, None

    def close(self) -> None:
        """Ends the threads. Batches that are being sampled end first, which is soon once the generator is closed."""
        self._end()
        self._pool.shutdown()

    def _end(self) -> None:
        batches, self._batches = self._batches, {}
        for batch in batches.values():
            batch.cancel()
        for batch in batches.values():
            if not batch.cancelled():
                batch.exception()

    def _start(self, step: int) -> Future[tuple[Sampled, int]]:
        if not self.staleness:
            return self._pool.submit(self._sample, step, self.rollouts)
        cursor = self.rollouts.prompts if self.rollouts.batches else self.rollouts.prompts.split_off()
        rollouts = replace(self.rollouts, prompts=cursor, score=self._score, timer=PhaseTimer())
        return self._pool.submit(self._sample, step, rollouts)

    def _sample(self, step: int, rollouts: RolloutSampler) -> tuple[Sampled, int]:
        groups, metrics = rollouts.sample(step)
        if rollouts.timer is not self.timer:
            metrics |= {name.replace("time/", "pipeline/"): seconds for name, seconds in rollouts.timer.pop().items()}
        return (groups, metrics), rollouts.prompts.position

    def _score(self, groups: Sequence[RolloutGroup], begun: Mapping[int, Any]) -> list[ScoredGroup]:
        """One batch at a time: a user's reward need not be made for several threads."""
        with self._scoring:
            return self.rollouts.score(groups, begun)


class InlineExecutor(Executor):
    """Runs what is submitted at once and in this thread, so that rewards may use signals and Ctrl-C reaches them."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args, **kwargs))
        return done
