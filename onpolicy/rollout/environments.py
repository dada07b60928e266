"""A generator whose interactive prompts are conversations with an environment.

Environments are asynchronous and share an event loop on a thread of its own. What they ask of the policy goes to the generator, each turn
a prompt that ends with the conversation so far; whatever a generator does (replicas, new weights meanwhile, a shared prefix computed
once) holds for every turn.
"""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

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
        self, generator: Generator, environment: Environment, rules: Rules, note: Callable[[str], None]
    ) -> None:
        """
        Args:
            generator: samples each turn
            environment: answers
            rules: what holds for every conversation
            note: told how many rollouts of a call failed, and why
        """
        self._generator, self._environment, self._rules, self._note = generator, environment, rules, note
        self.on_progress = generator.on_progress
        self._ended = self._held = 0
        generator.on_progress = self._progress
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
        self._calls.shutdown(cancel_futures=True)

    def __getattr__(self, name: str) -> Any:
        """What a generator has beyond the protocol, such as vLLM's own log-probabilities."""
        return getattr(self._generator, name)

    def _progress(self, done: int, total: int, tokens: int) -> None:
        """Of a call of the generator; while conversations are held, they are what is counted."""
        self.on_progress(*((self._ended, self._held) if self._held else (done, total)), tokens)

    def _hold(self, prompts: Sequence[Prompt], seed: int, sampling: Sampling, on_group: OnGroup) -> list[RolloutGroup]:
        size, rules = sampling.group_size, self._rules
        arrivals = Arrivals(prompts, size, on_group)
        starts = {
            number: EpisodeStart(
                prompts[number // size],
                partial(
                    Episode,
                    prompts[number // size],
                    number % size,
                    rules.renderer,
                    max_tokens=sampling.max_tokens,
                    window=rules.window,
                ),
            )
            for number in range(len(prompts) * size)
        }
        failures = Counter[str]()
        self._ended, self._held = 0, len(starts)

        def finish(number: int, rollout: Rollout) -> None:
            del starts[number]
            self._ended += 1
            if rollout.outcome is not None and rollout.outcome.failure:
                failures[rollout.outcome.failure] += 1
            arrivals.add(number, rollout)

        calls = _Calls(self._calls, self._generator, seed, replace(sampling, group_size=1))
        while starts:
            loop = EnvironmentLoop(self._environment, dict(starts), timeout=rules.timeout)
            try:
                culprit = self._play(loop, starts, calls, finish)
            finally:
                loop.close()
            if culprit is not None:
                why = f"it held its thread for {rules.timeout:g} seconds"
                finish(culprit, starts[culprit].new().rollout(EnvironmentOutcome(failure=why)))
        self._held = 0
        self._tell(failures, len(prompts) * size)
        return arrivals.groups()

    @staticmethod
    def _play(
        loop: EnvironmentLoop, starts: dict[int, EpisodeStart], calls: _Calls, finish: Callable[[int, Rollout], None]
    ) -> int | None:
        """Until all have ended, or one holds the loop: its number."""
        events = loop.events
        while starts:
            calls.check()
            try:
                event = events.get(timeout=TICK)
            except queue.Empty:
                culprit = loop.blocked_by()
                if culprit is not None:
                    loop.abandon()
                    return culprit
                continue
            waiting = [event]
            while not events.empty():
                waiting.append(events.get())
            calls.add([turn for turn in waiting if isinstance(turn, Turn)])
            for end in waiting:
                if isinstance(end, Finished):
                    finish(end.number, end.rollout)
                elif isinstance(end, BaseException):
                    raise end
        return None

    def _tell(self, failures: Counter[str], total: int) -> None:
        if not failures:
            return
        reasons = "; ".join(f"{reason} ({n})" for reason, n in failures.most_common(3))
        if failures.total() == total:
            raise EnvironmentBroken(f"environment: all {total} rollouts failed: {reasons}")
        self._note(f"environment: {failures.total()} of {total} rollouts failed and are left out: {reasons}")


class _Calls:
    """The calls of the generator that answer turns."""

    def __init__(self, pool: ThreadPoolExecutor, generator: Generator, seed: int, sampling: Sampling) -> None:
        self._pool, self._generator, self._seed, self._sampling = pool, generator, seed, sampling
        self._waiting: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def add(self, turns: Sequence[Turn]) -> None:
        """They are answered by the next call that is free, together with all others that wait by then."""
        for turn in turns:
            self._waiting.put(turn)
        if turns:
            self._pool.submit(self._answer)

    def check(self) -> None:
        """Raises what a call raised."""
        if not self._errors.empty():
            raise self._errors.get()

    def _answer(self) -> None:
        turns: list[Turn] = []
        while not self._waiting.empty():
            try:
                turns.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        if not turns:
            return

        def tell(place: int, group: RolloutGroup) -> None:
            if not turns[place].answer.done():
                turns[place].answer.set_result(group.rollouts[0])

        try:
            prompts = [turn.prompt for turn in turns]
            self._generator.generate(prompts, seed=self._seed, sampling=self._sampling, on_group=tell)
        except BaseException as error:
            self._errors.put(error)
            for turn in turns:
                if not turn.answer.done():
                    turn.answer.set_exception(error)
