"""A pool of generators, each a Ray actor, with the interface of one ``Generator``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.distributed import ray_cluster
from onpolicy.distributed.actor import Actor
from onpolicy.distributed.actor_pool import ActorPool
from onpolicy.distributed.direct_weights import DirectWeights, NotNow, Snapshot
from onpolicy.distributed.remote_errors import picklable_errors
from onpolicy.distributed.tasks import MAX_IN_FLIGHT, ActorLost
from onpolicy.distributed.weight_paths import Sender, WeightPath, here
from onpolicy.distributed.weight_receiver import WeightReceiver
from onpolicy.distributed.weight_transfer import WeightRefs, put_weights
from onpolicy.models import ModelHandle, engine_dtype, open_model, vocabulary_size
from onpolicy.protocols import AdapterShape, Generator, OnGroup, Weights, ignore_group
from onpolicy.rollout.build import local_generator
from onpolicy.rollout.validation import InvalidRollout, RolloutValidator
from onpolicy.rollout.weight_version import require_newer
from onpolicy.trainer.student_weights import StudentWeights
from onpolicy.types import Prompt, RolloutGroup, Sampling
from onpolicy.utils.faults import Faults, GaveUp

if TYPE_CHECKING:
    from torch import Tensor

    from onpolicy.config.schema import Config

TASKS_PER_REPLICA = 8
"""Tasks for each replica into which a call is split, if there are enough prompts."""
MAX_REPLICAS_LOST = 3
"""Replicas that an error other than the user's may cost before it is raised."""


@dataclass(frozen=True)
class VersionedWeights:
    """The replicas' current weights; kept until the next ones, so that a new replica can be given them."""

    source: WeightRefs | Snapshot
    """In the object store, or with the trainer's ranks, which send them."""
    version: int


@dataclass(frozen=True)
class GenerateTask:
    """Some prompts of one call."""

    prompts: tuple[Prompt, ...]
    seed: int
    sampling: Sampling


class Replica(Actor):
    """The configured generator, as an actor that answers several calls at a time."""

    def __init__(
        self, config: Config, max_model_len: int, folder: str, adapter: AdapterShape | None, sender: Sender | None
    ) -> None:
        super().__init__(folder)
        self._config, self._max_model_len, self._adapter, self._sender = config, max_model_len, adapter, sender

    def set_up(self) -> None:
        from onpolicy.config.resolve import resolve
        from onpolicy.utils.terminal import quiet_libraries

        quiet_libraries()
        resolved = resolve(self._config)
        model = replace(open_model(resolved), max_model_len=self._max_model_len)
        self._path = self._sender.path_to(here()) if self._sender else WeightPath(None)
        self._generator: Generator = local_generator(
            resolved, model, adapter=self._adapter, transfer_backend=self._path.backend
        )
        self._generator.on_progress = self.report_progress
        self._receiver = WeightReceiver(self._receive)

    def weight_path(self) -> WeightPath:
        """How it can get weights."""
        return self._path

    @picklable_errors()
    def generate(self, task: GenerateTask) -> list[RolloutGroup]:
        return self._generator.generate(task.prompts, seed=task.seed, sampling=task.sampling)

    @picklable_errors()
    def update_weights(self, weights: WeightRefs, version: int) -> None:
        """Also takes older weights, since the run may have gone back: the driver decides on the order."""
        self._expect(version)
        counted = partial(self._counted, weights)
        self._generator.update_weights(
            StudentWeights(counted, adapter=counted), version=version
        )  # as the pool's adapter

    @picklable_errors()
    def open_transfer(self, init_info: dict[str, Any]) -> None:
        """Joins rank 0 of the trainer, which calls this and the next three (``weight_sender.ReplicaClient``)."""
        self._generator.open_transfer(init_info)  # type: ignore[attr-defined]

    @picklable_errors()
    def begin_weights(self, version: int) -> None:
        self._receiver.begin(version)

    @picklable_errors()
    def take_weights(self, part: dict[str, Any]) -> None:
        self._receiver.take(part)
        self.report_progress()

    @picklable_errors()
    def end_weights(self) -> None:
        self._receiver.end()

    @picklable_errors()
    def confirm_weights(self, version: int) -> None:
        """Raises where it has other weights than the trainer has sent."""
        if self._generator.policy_version != version:
            raise RuntimeError(f"weights: got version {self._generator.policy_version}, expected {version}")

    def _receive(self, parts: Iterator[dict[str, Any]], version: int) -> None:
        self._expect(version)
        self._generator.receive_weights(parts, version=version)  # type: ignore[attr-defined]

    def _expect(self, version: int) -> None:
        self._generator.policy_version = min(self._generator.policy_version, version - 1)

    def close(self) -> None:
        self._generator.close()

    def _counted(self, weights: WeightRefs) -> Iterable[tuple[str, Tensor]]:
        for pair in weights:
            self.report_progress()
            yield pair


class ReplicaSpec:
    """The ``ActorSpec`` of the replicas."""

    role = "generator"

    def __init__(
        self,
        resolved: ResolvedConfig,
        max_model_len: int,
        validator: RolloutValidator,
        adapter: AdapterShape | None = None,
        direct: DirectWeights | None = None,
    ) -> None:
        self._resolved, self._max_model_len, self._validator = resolved, max_model_len, validator
        self._adapter, self._direct = adapter, direct

    def start(self) -> Any:
        import ray

        resources = ray_cluster.resources(self._resolved, gpus=ray_cluster.gpus_per_generator(self._resolved))
        actor = ray.remote(Replica).options(max_concurrency=MAX_IN_FLIGHT + 4, **resources)
        sender = self._direct.sender() if self._direct else None
        return actor.remote(self._resolved.config, self._max_model_len, os.getcwd(), self._adapter, sender)

    def sync_state(self, actor: Any, state: VersionedWeights) -> Any:
        if isinstance(state.source, WeightRefs):
            return actor.update_weights.remote(state.source, state.version)
        assert self._direct is not None
        try:
            return self._direct.sync(actor, state.source, state.version)
        except NotNow:
            return None

    def forget(self, actor: Any) -> None:
        if self._direct is not None:
            self._direct.forget(actor)

    def send(self, actor: Any, task: GenerateTask) -> Any:
        return actor.generate.remote(task)

    def validate(
        self, task: GenerateTask, answer: Any, *, before: VersionedWeights | None, now: VersionedWeights | None
    ) -> list[RolloutGroup]:
        oldest, newest = (weights.version if weights else 0 for weights in (before, now))
        try:
            self._validator.validate(answer, task.prompts, sampling=task.sampling, oldest=oldest, newest=newest)
        except InvalidRollout as error:
            raise ActorLost(f"answered nonsense: it {error}") from error
        groups: list[RolloutGroup] = answer
        return [replace(group, prompt=prompt) for group, prompt in zip(groups, task.prompts, strict=True)]

    def is_user_error(self, error: Exception) -> bool:
        """Errors of code and arguments occur on every replica; engines and devices that fail raise other types."""
        return isinstance(error, (ValueError, TypeError, LookupError, AttributeError, AssertionError))

    def give_up_error(self, task: GenerateTask, losses: int, lost: ActorLost) -> Exception | None:
        if lost.raised is not None and losses >= MAX_REPLICAS_LOST:
            return lost.raised
        if losses <= self._resolved.config.distributed.max_restarts:
            return None
        names = ", ".join(repr(prompt.id) for prompt in task.prompts)
        return GaveUp(f"generator: {losses} replicas were lost over the prompts {names}; the last one {lost}")


class GeneratorPool:
    """A ``Generator`` that any number of threads may use at the same time."""

    def __init__(
        self,
        resolved: ResolvedConfig,
        model: ModelHandle,
        faults: Faults | None = None,
        *,
        adapter: AdapterShape | None = None,
        direct: DirectWeights | None = None,
    ) -> None:
        """Returns at once; the replicas load their models in the background.

        Args:
            faults: called for every replica that is replaced
            adapter: of the adapters that are all that the replicas are given of the student
            direct: the trainer's ranks, where they send weights by themselves

        Raises:
            ConfigError: the cluster cannot be joined, or has too few GPUs.
        """
        settings = resolved.config.model
        vocabulary = vocabulary_size(
            model.path, trust_remote_code=settings.trust_remote_code, revision=settings.revision
        )
        self.sampling, self.policy_version = resolved.generator.settings, 0
        self.parallel_calls: int = getattr(resolved.generator.plugin.function, "parallel_calls", 1)
        self.on_progress: Callable[[int, int, int], None] = lambda done, total, tokens: None
        self._roles, self._went_back = resolved.config.distributed, False
        self._lock, self._adapter_alone, self._direct = threading.Lock(), adapter is not None, direct
        self._done = self._total = self._tokens = self._calls = 0
        ray_cluster.join(self._roles)
        with ray_cluster.leave_on_error():
            ray_cluster.resources(resolved, gpus=ray_cluster.gpus_per_generator(resolved))
            self._dtype = engine_dtype(resolved, model.path, on_gpu=ray_cluster.cluster_gpus() > 0)
        spec = ReplicaSpec(resolved, model.max_model_len, RolloutValidator(model.renderer, vocabulary), adapter, direct)
        self.actors = ActorPool(spec, self._roles.num_generators, self._roles, faults)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]:
        """``group_size`` rollouts of each prompt, in the order given; each by whichever replica is free."""
        sampling = sampling or self.sampling
        size = max(1, len(prompts) // (TASKS_PER_REPLICA * self._roles.num_generators))
        parts = [tuple(prompts[i : i + size]) for i in range(0, len(prompts), size)]
        self._report(0, len(prompts) * sampling.group_size, calls=1)
        futures = self.actors.submit(GenerateTask(part, seed, sampling) for part in parts)
        try:
            self._wait_for({future: part * size for part, future in enumerate(futures)}, on_group)
            return [group for future in futures for group in future.result()]
        finally:
            self.actors.cancel(futures)
            self._report(0, 0, calls=-1)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]] | Weights, *, version: int) -> None:
        """Returns when every replica that is up has the weights; one that comes up later gets them before any work, or the next ones where
        the trainer that sends them by itself has changed them.

        Raises:
            RoleLost: a rank of that trainer was lost.
        """
        newer = version if self._went_back else require_newer(version, self.policy_version)
        if self._direct is not None and isinstance(weights, StudentWeights):
            source: WeightRefs | Snapshot = self._direct.snapshot()
        else:
            source = put_weights(_part_of(weights, adapter=self._adapter_alone), self._dtype)
        self.actors.sync_state(VersionedWeights(source, newer))
        self.policy_version, self._went_back = newer, False

    def rest(self) -> None:
        """Nothing to give back: replicas have GPUs of their own."""

    def reset_version(self) -> None:
        """The run goes back: open calls are cancelled, and the next weights may be of any version."""
        self.cancel()
        self._went_back = True

    def cancel(self) -> None:
        """Cancels open calls; whoever waits for one gets a ``concurrent.futures.CancelledError``."""
        self.actors.cancel()

    def close(self) -> None:
        if not self.actors.closed:
            self.actors.close()
            ray_cluster.leave()

    def _wait_for(self, futures: Mapping[Future[list[RolloutGroup]], int], on_group: OnGroup) -> None:
        """Until all are done or one has failed; reports progress, and each group with its place, counted from that of its future."""
        open_ = set(futures)
        while open_:
            done, open_ = wait(open_, return_when=FIRST_COMPLETED)
            for future in done:
                for place, group in enumerate(future.result(), futures[future]):
                    on_group(place, group)
                rollouts = [rollout for group in future.result() for rollout in group.rollouts]
                self._report(len(rollouts), 0, tokens=sum(r.num_sampled for r in rollouts))

    def _report(self, done: int, total: int, *, tokens: int = 0, calls: int = 0) -> None:
        """Reports the progress of all open calls together."""
        with self._lock:
            self._done, self._total, self._calls = self._done + done, self._total + total, self._calls + calls
            self._tokens += tokens
            if not self._calls:
                self._done = self._total = self._tokens = 0
            so_far = self._done, self._total, self._tokens
        if done:
            self.on_progress(*so_far)


def _part_of(weights: Iterable[tuple[str, Tensor]] | Weights, *, adapter: bool) -> Iterable[tuple[str, Tensor]]:
    """The part of a student's weights that replicas take, as its trainer hands it over; weights from elsewhere are taken as they are."""
    if not isinstance(weights, StudentWeights):
        return weights
    return weights.adapter() if adapter else weights.whole()
