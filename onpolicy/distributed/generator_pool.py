"""Several generators, each in a process of its own, behind the face of one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onpolicy.config.resolve import ResolvedConfig
from onpolicy.distributed import ray_cluster
from onpolicy.distributed.actor import Worker
from onpolicy.distributed.actor_pool import IN_FLIGHT, ActorPool
from onpolicy.distributed.remote_errors import outcome
from onpolicy.distributed.supervisor import ActorLost
from onpolicy.distributed.weight_transfer import WeightRefs, put_weights
from onpolicy.models import ModelHandle, open_model, vocabulary_size
from onpolicy.protocols import Generator
from onpolicy.rollout.build import local_generator
from onpolicy.rollout.validation import InvalidRollout, RolloutValidator
from onpolicy.rollout.weight_version import require_newer
from onpolicy.types import Prompt, RolloutGroup, Sampling
from onpolicy.utils.faults import Faults, GaveUp

if TYPE_CHECKING:
    from torch import Tensor

    from onpolicy.config.schema import Config

UNITS = 8
"""Pieces for each replica into which a call is cut, if there are prompts enough."""
TRIES = 3
"""Replicas that an error other than the user's may cost before it is raised."""


@dataclass(frozen=True)
class Weights:
    """What the replicas have now; kept until the next, so that a new replica can be given it."""

    shipped: WeightRefs
    version: int


@dataclass(frozen=True)
class Task:
    """Some prompts of one call."""

    prompts: tuple[Prompt, ...]
    seed: int
    sampling: Sampling


class Replica(Worker):
    """The configured generator, as an actor that several threads call."""

    def __init__(self, config: Config, max_model_len: int, folder: str) -> None:
        super().__init__(folder)
        self._config, self._max_model_len = config, max_model_len

    def set_up(self) -> None:
        from onpolicy.config.resolve import resolve
        from onpolicy.utils.quiet import quiet_libraries

        quiet_libraries()
        resolved = resolve(self._config)
        model = replace(open_model(resolved), max_model_len=self._max_model_len)
        self._generator: Generator = local_generator(resolved, model)
        self._generator.on_progress = self.alive

    def generate(self, task: Task) -> Any:
        return outcome(self._generator.generate, task.prompts, seed=task.seed, sampling=task.sampling)

    def update_weights(self, shipped: WeightRefs, version: int) -> Any:
        """The driver knows which weights come after which; also older ones, after the run went back."""
        self._generator.policy_version = min(self._generator.policy_version, version - 1)
        return outcome(self._generator.update_weights, self._counted(shipped), version=version)

    def close(self) -> None:
        self._generator.close()

    def _counted(self, shipped: WeightRefs) -> Iterable[tuple[str, Tensor]]:
        for pair in shipped:
            self.alive()
            yield pair


class Sampler:
    """The duty of the replicas (``onpolicy.distributed.actor_pool``)."""

    role = "generator"

    def __init__(self, resolved: ResolvedConfig, max_model_len: int, check: RolloutValidator) -> None:
        self._plan, self._max_model_len, self._check = resolved, max_model_len, check

    def start(self) -> Any:
        import ray

        wanted = ray_cluster.resources(self._plan, gpus=ray_cluster.gpus_per_generator(self._plan))
        actor = ray.remote(Replica).options(max_concurrency=IN_FLIGHT + 4, **wanted)
        return actor.remote(self._plan.config, self._max_model_len, os.getcwd())

    def renew(self, actor: Any, state: Weights) -> Any:
        return actor.update_weights.remote(state.shipped, state.version)

    def send(self, actor: Any, task: Task) -> Any:
        return actor.generate.remote(task)

    def accept(self, task: Task, answer: Any, *, before: Weights | None, now: Weights | None) -> list[RolloutGroup]:
        versions = [weights.version if weights else 0 for weights in (before, now)]
        try:
            self._check(answer, task.prompts, sampling=task.sampling, oldest=versions[0], newest=versions[1])
        except InvalidRollout as error:
            raise ActorLost(f"answered nonsense: it {error}") from error
        groups: list[RolloutGroup] = answer
        return [replace(group, prompt=prompt) for group, prompt in zip(groups, task.prompts, strict=True)]

    def harmless(self, error: Exception) -> bool:
        """What is wrong with code or arguments is wrong everywhere; engines and devices that fail raise other errors."""
        return isinstance(error, (ValueError, TypeError, LookupError, AttributeError, AssertionError))

    def hopeless(self, task: Task, losses: int, lost: ActorLost) -> Exception | None:
        if lost.raised is not None and losses >= TRIES:
            return lost.raised
        if losses <= self._plan.config.roles.restarts:
            return None
        names = ", ".join(repr(prompt.id) for prompt in task.prompts)
        return GaveUp(f"generator: {losses} replicas were lost over the prompts {names}; the last one {lost}")


class Replicas:
    """A ``Generator`` that any number of threads may use at the same time."""

    def __init__(self, resolved: ResolvedConfig, model: ModelHandle, faults: Faults | None = None) -> None:
        """Returns at once; the replicas load their models meanwhile.

        Args:
            faults: is told of every replica that is replaced

        Raises:
            ConfigError: the cluster cannot be joined, or has too few GPUs.
        """
        settings = resolved.config.model
        vocabulary = vocabulary_size(
            model.path, trust_remote_code=settings.trust_remote_code, revision=settings.revision
        )
        self.sampling, self.policy_version = resolved.generator.settings, 0
        self.on_progress: Callable[[int, int], None] = lambda done, total: None
        self._roles, self._rewound = resolved.config.roles, False
        self._lock = threading.Lock()
        self._done = self._total = self._calls = 0
        ray_cluster.join(self._roles)
        try:
            ray_cluster.resources(resolved, gpus=ray_cluster.gpus_per_generator(resolved))
        except BaseException:
            ray_cluster.leave()
            raise
        duty = Sampler(resolved, model.max_model_len, RolloutValidator(model.renderer, vocabulary))
        self.crew = ActorPool(duty, self._roles.generators, self._roles, faults)

    def generate(self, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling | None = None) -> list[RolloutGroup]:
        """``group_size`` rollouts of each prompt, in the order given; each by whichever replica is free."""
        sampling = sampling or self.sampling
        size = max(1, len(prompts) // (UNITS * self._roles.generators))
        parts = [tuple(prompts[i : i + size]) for i in range(0, len(prompts), size)]
        self._report(0, len(prompts) * sampling.group_size, calls=1)
        futures = self.crew.submit(Task(part, seed, sampling) for part in parts)
        try:
            self._follow(futures)
            return [group for future in futures for group in future.result()]
        finally:
            self.crew.cancel(futures)
            self._report(0, 0, calls=-1)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Every replica that is up has them when this returns; one that comes up later gets them before any work."""
        resolved = version if self._rewound else require_newer(version, self.policy_version)
        self.crew.renew(Weights(put_weights(weights), resolved))
        self.policy_version, self._rewound = resolved, False

    def reset_version(self) -> None:
        """The run goes back: what is under way is forgotten, and the next weights may be of any version."""
        self.cancel()
        self._rewound = True

    def cancel(self) -> None:
        """Forgets what is under way; whoever waits for it gets a ``concurrent.futures.CancelledError``."""
        self.crew.cancel()

    def close(self) -> None:
        if not self.crew.closed:
            self.crew.close()
            ray_cluster.leave()

    def _follow(self, futures: Sequence[Future[list[RolloutGroup]]]) -> None:
        """Until all are done, or one has failed."""
        open_ = set(futures)
        while open_:
            done, open_ = wait(open_, return_when=FIRST_COMPLETED)
            for future in done:
                self._report(sum(len(group.rollouts) for group in future.result()), 0)

    def _report(self, done: int, total: int, *, calls: int = 0) -> None:
        """Of all calls that are under way together."""
        with self._lock:
            self._done, self._total, self._calls = self._done + done, self._total + total, self._calls + calls
            if not self._calls:
                self._done = self._total = 0
            so_far = self._done, self._total
        if done:
            self.on_progress(*so_far)
