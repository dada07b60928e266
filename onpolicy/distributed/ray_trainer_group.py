"""Ranks of a trainer as Ray actors. When one is lost, all of them are started again."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.distributed import ray_cluster
from onpolicy.distributed.actor import Actor
from onpolicy.distributed.heartbeat import STARTUP_FACTOR, Failure, HeartbeatMonitor
from onpolicy.distributed.processes import kill_actor, local_process
from onpolicy.distributed.remote_errors import one_line, picklable_errors
from onpolicy.distributed.trainer_group import TrainerGroup, TrainerWorker
from onpolicy.distributed.weight_paths import Place, here
from onpolicy.distributed.weight_sender import TransferGroup, WeightSenders
from onpolicy.distributed.weight_transfer import WeightBucket, WeightRefs, pack_weights
from onpolicy.utils.faults import Faults, GaveUp, RoleLost
from onpolicy.utils.timer import PhaseTimer

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

    from onpolicy.config.schema import Config
    from onpolicy.trainer.process_group import Meeting

POLL = 1.0
"""Seconds between two polls of the ranks' heartbeats."""
GRACE = 5.0
"""Seconds in which the death of a rank is noticed after another rank's call failed because of it."""


class Rank(Actor):
    """One rank, as an actor."""

    def __init__(self, config: Config, folder: str, rank: int, size: int) -> None:
        super().__init__(folder)
        self._config, self._rank, self._size = config, rank, size
        self._store: Store | None = None

    def set_up(self) -> None:
        from onpolicy.utils.terminal import quiet_libraries

        quiet_libraries()

    def open_store(self) -> tuple[str, int]:
        """Opens the store at which the ranks meet, on this node's address in the cluster; returns host and port."""
        import ray

        from onpolicy.trainer.process_group import open_store

        host = ray.util.get_node_ip_address()
        self._store = store = open_store(host)
        return host, store.port

    @picklable_errors()
    def load(self, meeting: Meeting) -> int:
        """Joins the other ranks and loads the model; returns the trainer's tokens per micro-batch."""
        from onpolicy.models import engine_dtype, open_model
        from onpolicy.trainer.process_group import find_store, join_process_group

        os.environ |= {"RANK": str(self._rank), "WORLD_SIZE": str(self._size), "LOCAL_RANK": "0"}
        if self._size > 1:
            join_process_group(self._store or find_store(meeting, self._size))
        import torch

        resolved, clock = resolve(self._config), PhaseTimer()
        clock.on_phase = clock.on_progress = self.report_progress
        model = open_model(resolved)
        self._worker = TrainerWorker(resolved, model, clock, size=self._size)
        on_gpu = torch.cuda.is_available()
        self._dtype = engine_dtype(resolved, model.path, on_gpu=on_gpu)
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self._senders = WeightSenders(partial(self._worker.gathered_weights, False), device, self.report_progress)
        return self._worker.trainer.batching.budget

    @picklable_errors()
    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        """``TrainerWorker.call``; the answer is rank 0's."""
        self.report_progress()
        answer = self._worker.call(method, arguments)
        return answer if self._rank == 0 else None

    def phase_seconds(self) -> dict[str, float]:
        """Seconds that the phases took since the last call."""
        return self._worker.clock.pop()

    def weight_buckets(self, adapter: bool) -> Iterator[WeightBucket]:
        """The student's weights, or its adapters alone, one bucket at a time."""
        with picklable_errors():
            buckets = pack_weights(self._worker.gathered_weights(adapter), dtype=self._dtype)
            for bucket in buckets if adapter else self._senders.noting(buckets):
                self.report_progress()
                yield bucket

    def place(self) -> Place:
        """Where this rank works."""
        return here()

    @picklable_errors()
    def open_group(self, group: TransferGroup, replica: Any, leave: Sequence[int]) -> str:
        """``WeightSenders.open``; rank 0's alone."""
        import ray

        for number in leave:
            self._senders.close(number)
        return self._senders.open(group, replica, ray.util.get_node_ip_address())

    @picklable_errors()
    def send(self, number: int, version: int) -> str:
        """``WeightSenders.send``; the other ranks join in gathering."""
        return self._senders.send(number, version)


class RayTrainerGroup(TrainerGroup):
    """All ranks, called from the driver; by one thread at a time, which holds ``turn``."""

    place: Place
    """Where rank 0 works."""

    def __init__(self, resolved: ResolvedConfig, clock: PhaseTimer, faults: Faults) -> None:
        super().__init__(resolved)
        self._resolved, self._clock, self._faults = resolved, clock, faults
        self.size, self._roles = resolved.config.distributed.num_trainers, resolved.config.distributed
        self.turn = threading.RLock()
        self.incarnation = self.changes = 0
        """How often ranks were started, and how often their weights have changed."""
        self._actors: list[Any] = []
        self._processes: list[Any] = []
        self._budget: int | None = None
        """Tokens per micro-batch, once memory has run out."""
        self._folder = tempfile.TemporaryDirectory(prefix="onpolicy-ranks-")
        ray_cluster.join(resolved.config.distributed)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for attempt in range(self._roles.max_restarts + 1):
            try:
                return self.restart()
            except RoleLost as lost:
                if attempt == self._roles.max_restarts:
                    raise GaveUp(
                        f"trainer: {lost}; it did not come up {attempt + 1} times (distributed.max_restarts)"
                    ) from lost
                self._faults.record("trainer", f"{lost}; starting all ranks again")

    def restart(self) -> None:
        """Starts new ranks in place of the old ones; they have the reference model.

        Raises:
            RoleLost: one of them did not come up.
        """
        import ray

        with self.turn:
            self._kill_ranks()
            self.incarnation, self.changes = self.incarnation + 1, self.changes + 1
            resources = ray_cluster.resources(self._resolved, gpus=1)
            if self._roles.address is None:  # gloo would look for the machine's own address
                environment = {"GLOO_SOCKET_IFNAME": "lo"} | resources["runtime_env"]["env_vars"]
                resources["runtime_env"] = {"env_vars": environment}
            config = self._config()
            for rank in range(self.size):
                actor = ray.remote(Rank).options(max_concurrency=3, **resources)
                self._actors.append(actor.remote(config, os.getcwd(), rank, self.size))
            self._timeout = STARTUP_FACTOR * self._roles.heartbeat_timeout_s
            places = self._await([actor.ready.remote() for actor in self._actors])
            self._processes = [local_process(*place) for place in places]
            meeting = self._meeting()
            (self._tokens, *_) = self._await([actor.load.remote(meeting) for actor in self._actors])
            (self.place,) = self._await([self._actors[0].place.remote()])
            self._timeout = self._roles.heartbeat_timeout_s

    def call_all(self, method: str, *arguments: Any) -> Any:
        import ray

        with self.turn:
            given = ray.put(arguments)
            return self._await([actor.call.remote(method, given) for actor in self._ranks()])[0]

    def step(self, examples: Sequence[Any]) -> dict[str, float]:
        with self.turn:
            self.changes += 1
            metrics = super().step(examples)
            (seconds,) = self._await([self._actors[0].phase_seconds.remote()])
        self._clock.absorb(seconds)
        return metrics

    def load_state(self, folder: Path, state: Mapping[str, Any]) -> None:
        with self.turn:
            self.changes += 1
            super().load_state(folder, state)

    def gather(self, adapter: bool) -> WeightRefs:
        """Tensor by tensor into the object store. The driver owns the buckets, so they outlive the ranks."""
        with self.turn:
            first, *others = self._ranks()
            stream = first.weight_buckets.options(num_returns="streaming").remote(adapter)
            self._await([stream.completed(), *_join_gather(others, adapter)])
            return WeightRefs(list(stream))

    def ask_first(self, method: str, *arguments: Any, gather: bool = False) -> Any:
        """Calls rank 0; with ``gather`` the others join it in gathering the weights."""
        first, *others = self._ranks()
        helping = _join_gather(others, False) if gather else []
        return self._await([getattr(first, method).remote(*arguments), *helping])[0]

    def _ranks(self) -> list[Any]:
        """All of them; raises RoleLost where they were lost in an earlier call."""
        if not self._actors:
            raise RoleLost("all ranks were lost before")
        return self._actors

    def close(self) -> None:
        self._kill_ranks()
        self._folder.cleanup()
        ray_cluster.leave()

    def _meeting(self) -> Meeting:
        """Where the ranks find each other: on one machine a file, which nobody can reach from outside."""
        if self._roles.address is None:
            return Path(self._folder.name, str(time.monotonic_ns()))
        ((host, port),) = self._await([self._actors[0].open_store.remote()])
        return host, port

    def _config(self) -> Config:
        config = self._resolved.config
        if self._budget is None:
            return config
        return dataclasses.replace(config, trainer={**config.trainer, "micro_batch_tokens": self._budget})

    def _await(self, refs: Sequence[Any]) -> list[Any]:
        """The ranks' answers, in the order of ``refs``, with an eye on their heartbeats.

        Raises:
            RoleLost: a rank died, hung, or ran out of memory. All ranks are gone then.
        """
        import ray

        monitor, open_, answers = HeartbeatMonitor(self._actors, self._timeout), list(refs), {}
        while open_:
            ready, open_ = ray.wait(open_, timeout=POLL)
            for ref in ready:
                rank = list(refs).index(ref)
                try:
                    answers[rank] = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    self._raise(rank, error.cause)
                except ray.exceptions.ActorDiedError as error:
                    self._lose(rank, "died", error)
                except ray.exceptions.RayError as error:
                    self._lose(rank, one_line(error), error)
            if not ready and (failure := monitor.poll()):
                self._lose(failure.index, self._reason(failure), failure.error)
        return [answers[rank] for rank in range(len(refs))]

    def _reason(self, failure: Failure) -> str:
        return {
            "died": "died",
            "silent": f"did not answer for {self._timeout:g} s (distributed.heartbeat_timeout_s)",
            "stalled": f"and the others gave no sign of progress for {self._timeout:g} s (distributed.heartbeat_timeout_s)",
        }[failure.kind]

    def _raise(self, rank: int, error: Exception) -> NoReturn:
        """Raises the error of a rank's own work; if it was caused by the death of another rank, RoleLost."""
        import torch

        if isinstance(error, torch.OutOfMemoryError) and self._tokens > 1:
            self._budget = self._tokens // 2
            self._lose(rank, f"ran out of memory; trainer.micro_batch_tokens is {self._budget} from now on", error)
        dead = self._dead_rank()
        if dead is not None:
            self._lose(dead, "died", error)
        self._kill_ranks()
        raise error

    def _dead_rank(self) -> int | None:
        """The rank that dies within ``GRACE`` seconds."""
        monitor, until = HeartbeatMonitor(self._actors, self._timeout), time.monotonic() + GRACE
        while time.monotonic() < until:
            if failure := monitor.poll():
                return failure.index
            time.sleep(0.1)
        return None

    def _lose(self, rank: int, why: str, error: BaseException | None = None) -> NoReturn:
        self._kill_ranks()
        raise RoleLost(f"rank {rank} of {self.size} {why}") from error

    def _kill_ranks(self) -> None:
        """Ends all ranks for certain."""
        # a rank that did not come up has no process yet
        for actor, process in zip_longest(self._actors, self._processes):
            kill_actor(actor, process)
        self._actors, self._processes = [], []


def _join_gather(others: Sequence[Any], adapter: bool) -> list[Any]:
    """The other ranks take part in gathering the weights on rank 0; references to their answers."""
    import ray

    arguments = ray.put((adapter,))
    return [actor.call.remote("join_weight_gather", arguments) for actor in others]
