"""A generator whose interactive prompts are conversations with an environment.

Environments are asynchronous and share an event loop on a thread of its own. What they ask of the policy goes to the generator, each turn
a prompt that ends with the conversation so far; whatever a generator does (replicas, new weights meanwhile, a shared prefix computed
once) holds for every turn.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from onpolicy.data.rendering import Renderer
from onpolicy.protocols import Environment, Generator, OnGroup, ignore_group
from onpolicy.rollout.arrival import Arrivals
from onpolicy.rollout.environment_loop import EnvironmentLoop, EpisodeStart, Finished, Turn
from onpolicy.rollout.episode import Episode
from onpolicy.types import EnvironmentOutcome, Prompt, Rollout, RolloutGroup, Sampling
from onpolicy.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TICK = 0.5
"""Seconds between two looks at whether the environments' loop still turns."""


class EnvironmentBroken(UserError, RuntimeError):
    """Every conversation of a call failed; the message has the reasons."""


@dataclass(frozen=True)
class Rules:
    """What holds for every conversation."""

    renderer: Renderer
    window: int
    """Longest prompt and completion together, in tokens."""
    timeout: float
    """Seconds that an environment may take between two replies."""


class EnvironmentGenerator:
    """A ``Generator`` of one turn, with an environment for the prompts that are interactive."""

    def __init__(
        self, generator: Generator, make: Callable[[], Environment], rules: Rules, note: Callable[[str], None]
    ) -> None:
        """
        Args:
            generator: samples each turn
            make: the environment, which answers; again where one had to be left behind
            rules: what holds for every conversation
            note: told how many rollouts of a call failed, and why
        """
        self._generator, self._make, self._rules, self._note = generator, make, rules, note
        self.on_progress = generator.on_progress
        generator.on_progress = self._progress
        self._counts: dict[object, tuple[int, int]] = {}
        """Episodes that have ended, and all, of each call under way."""
        self._lock = threading.Lock()
        self._loop: EnvironmentLoop | None = None
        self._current_loop()  # what cannot be made is told before anything is sampled
        # where calls share batches a turn need not wait for the others'; else as many as wait go together
        self._calls = ThreadPoolExecutor(getattr(generator, "parallel_calls", 1), "turns")

    @property
    def sampling(self) -> Sampling:
        return self._generator.sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        self._generator.sampling = sampling

    @property
    def policy_version(self) -> int:
        return self._generator.policy_version

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        self._generator.policy_version = version

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]:
        """``group_size`` rollouts of each prompt, in the order given.

        Raises:
            EnvironmentBroken: every conversation failed.
        """
        sampling = sampling or self.sampling
        inner = partial(self._generator.generate, seed=seed, sampling=sampling)
        talks = [place for place, prompt in enumerate(prompts) if prompt.interactive]
        if not talks:
            return inner(prompts, on_group=on_group)
        others = [place for place, prompt in enumerate(prompts) if not prompt.interactive]
        found = dict(zip(others, inner([prompts[place] for place in others]) if others else (), strict=True))
        for place, group in found.items():
            on_group(place, group)
        held = self._hold([prompts[place] for place in talks], seed, sampling, lambda i, g: on_group(talks[i], g))
        found |= dict(zip(talks, held, strict=True))
        return [found[place] for place in range(len(prompts))]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        self._generator.update_weights(weights, version=version)

    def rest(self) -> None:
        self._generator.rest()

    def reset_version(self) -> None:
        self._generator.reset_version()

    def close(self) -> None:
        self._generator.close()
        if self._loop is not None:
            self._loop.close()
        self._calls.shutdown(cancel_futures=True)

    def _progress(self, done: int, total: int, tokens: int) -> None:
        """Of a call of the generator; while episodes are held, they are what is counted."""
        with self._lock:
            counts = list(self._counts.values())
        if counts:
            done, total = (sum(numbers) for numbers in zip(*counts, strict=True))
        self.on_progress(done, total, tokens)

    def _current_loop(self) -> EnvironmentLoop:
        with self._lock:
            if self._loop is None or self._loop.abandoned:
                self._loop = EnvironmentLoop(self._make(), timeout=self._rules.timeout)
            return self._loop

    def _hold(self, prompts: Sequence[Prompt], seed: int, sampling: Sampling, on_group: OnGroup) -> list[RolloutGroup]:
        size, failures, call = sampling.group_size, Counter[str](), object()
        arrivals = Arrivals(prompts, size, on_group)
        starts = {n: self._start(n, prompts[n // size], sampling) for n in range(len(prompts) * size)}

        def finish(number: int, rollout: Rollout) -> None:
            del starts[number]
            if rollout.outcome is not None and rollout.outcome.failure:
                failures[rollout.outcome.failure] += 1
            with self._lock:
                self._counts[call] = len(prompts) * size - len(starts), len(prompts) * size
            arrivals.add(number, rollout)

        calls = _Calls(self._calls, self._generator, seed, replace(sampling, group_size=1))
        try:
            while starts:
                loop = self._current_loop()
                self._play(loop, starts, calls, finish)
                culprit = loop.left_by  # of whichever call
                if culprit is not None and starts.get(culprit.number) is culprit:
                    why = f"it held its thread for {self._rules.timeout:g} seconds"
                    finish(culprit.number, culprit.new().rollout(EnvironmentOutcome(failure=why)))
            calls.finish()
        finally:
            with self._lock:
                self._counts.pop(call, None)
        tell_failures(failures, len(prompts) * size, self._note)
        return arrivals.groups()

    def _start(self, number: int, prompt: Prompt, sampling: Sampling) -> EpisodeStart:
        limits = {"max_tokens": sampling.max_tokens, "window": self._rules.window}
        return EpisodeStart(
            number, prompt, partial(Episode, prompt, number % sampling.group_size, self._rules.renderer, **limits)
        )

    @staticmethod
    def _play(
        loop: EnvironmentLoop,
        starts: dict[int, EpisodeStart],
        calls: _Calls,
        finish: Callable[[int, Rollout], None],
    ) -> None:
        """Until all have ended, or the loop is left behind, here or by another call."""
        held = loop.hold(list(starts.values()))
        try:
            while starts and not loop.abandoned:
                calls.check()
                try:
                    waiting = [held.events.get(timeout=TICK)]
                except queue.Empty:
                    culprit = loop.blocked_by()
                    if culprit is not None:
                        loop.abandon(culprit)
                    continue
                while not held.events.empty():
                    waiting.append(held.events.get())
                calls.add([turn for turn in waiting if isinstance(turn, Turn)])
                for event in waiting:
                    if isinstance(event, Finished):
                        finish(event.number, event.rollout)
                    elif isinstance(event, BaseException):
                        raise event
        finally:
            loop.cancel(held)


def tell_failures(failures: Counter[str], total: int, note: Callable[[str], None]) -> None:
    """Says how many rollouts failed, and why.

    Args:
        failures: how often each reason was given
        total: how many rollouts there were
        note: told of some

    Raises:
        EnvironmentBroken: they are all.
    """
    if not failures:
        return
    reasons = "; ".join(f"{reason} ({n})" for reason, n in failures.most_common(3))
    if failures.total() == total:
        raise EnvironmentBroken(f"environment: all {total} rollouts failed: {reasons}")
    note(f"environment: {failures.total()} of {total} rollouts failed and are left out: {reasons}")


class _Calls:
    """The calls of the generator that answer turns."""

    def __init__(self, pool: ThreadPoolExecutor, generator: Generator, seed: int, sampling: Sampling) -> None:
        self._pool, self._generator, self._seed, self._sampling = pool, generator, seed, sampling
        self._waiting: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._begun: list[Future[None]] = []

    def add(self, turns: Sequence[Turn]) -> None:
        """They are answered by the next call that is free, together with all others that wait by then."""
        for turn in turns:
            self._waiting.put(turn)
        if turns:
            self._begun.append(self._pool.submit(self._answer))

    def finish(self) -> None:
        """Waits for replies that nobody waits for any more: whoever has the rollouts may put the engine to sleep, or train."""
        wait(self._begun)
        self.check()

    def check(self) -> None:
        """Raises what a call raised."""
        if not self._errors.empty():
            raise self._errors.get()

    def _answer(self) -> None:
        turns: list[Turn] = []
        with suppress(queue.Empty):
            while True:
                turns.append(self._waiting.get_nowait())
        # an episode that was cancelled meanwhile waits for nothing; one that is from now on has its answer all the same
        turns = [turn for turn in turns if turn.answer.set_running_or_notify_cancel()]
        if not turns:
            return

        def tell(place: int, group: RolloutGroup) -> None:
            turns[place].answer.set_result(group.rollouts[0])

        try:
            prompts = [turn.prompt for turn in turns]
            self._generator.generate(prompts, seed=self._seed, sampling=self._sampling, on_group=tell)
        except BaseException as error:
            self._errors.put(error)
            for turn in turns:
                if not turn.answer.done():
                    turn.answer.set_exception(error)
