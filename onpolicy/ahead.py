"""One step off: the rollouts of the next step are sampled while this step is trained.

Samples of step n + 1 come from the weights that step n started with, so they are one version old, never more: new weights
wait until the sampling that is under way has finished. Where a checkpoint is due nothing is sampled ahead, so that a
resumed run has the same rollouts as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onpolicy.clock import Clock
from onpolicy.protocols import Generator
from onpolicy.rollouts import Rollouts
from onpolicy.sampling import Sampling
from onpolicy.scoring import JudgedGroup
from onpolicy.types import Metrics, Prompt, RolloutGroup

if TYPE_CHECKING:
    from torch import Tensor

Sampled = tuple[list[JudgedGroup], Metrics]


@dataclass
class Ahead:
    """In the place of ``Rollouts``: what was sampled ahead, and then the next step's are begun."""

    rollouts: Rollouts
    clock: Clock
    """Of the training; sampling on its thread is timed by itself, under ``ahead/``."""
    alone: Callable[[int], bool]
    """Whether nothing may be sampled while this step is trained."""
    position: int | None = None
    """Where the problems stood before those that were sampled ahead."""
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "ahead"))
    _next: Future[Sampled] | None = None

    def __call__(self, step: int) -> Sampled:
        if self._next is None:
            groups, metrics = self.rollouts(step)
        else:
            with self.clock("wait"):
                groups, metrics = self._next.result()
        self._next = self.position = None
        if not self.alone(step):
            self.position = self.rollouts.prompts.position
            self._next = self._thread.submit(self._sample, step + 1)
        return groups, metrics

    def settle(self) -> None:
        """Returns when nobody is sampling."""
        if self._next is not None:
            with self.clock("wait"):
                self._next.exception()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _sample(self, step: int) -> Sampled:
        clock = Clock()
        groups, metrics = replace(self.rollouts, clock=clock)(step)
        return groups, metrics | {name.replace("time/", "ahead/"): seconds for name, seconds in clock.read().items()}


class Settled:
    """The generator for everyone but ``Ahead``: works only while nothing is being sampled ahead."""

    def __init__(self, generator: Generator, settle: Callable[[], None]) -> None:
        self.generator, self.settle = generator, settle
        self.sampling, self.policy_version = generator.sampling, generator.policy_version

    @property
    def on_progress(self) -> Callable[[int, int], None]:
        return self.generator.on_progress

    @on_progress.setter
    def on_progress(self, report: Callable[[int, int], None]) -> None:
        self.generator.on_progress = report

    def generate(self, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling | None = None) -> list[RolloutGroup]:
        self.settle()
        return self.generator.generate(prompts, seed=seed, sampling=sampling)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        self.settle()
        self.generator.update_weights(weights, version=version)
        self.policy_version = version

    def close(self) -> None:
        self.settle()
        self.generator.close()
