"""Ranks of a trainer as Ray actors. They live and die together: where one is lost, all are started again."""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from onpolicy.config.resolve import ResolvedConfig, resolve
from onpolicy.distributed import ray_cluster
from onpolicy.distributed.actor import Worker
from onpolicy.distributed.remote_errors import Raised, outcome
from onpolicy.distributed.supervisor import STARTING, end, line_of, process_of
from onpolicy.distributed.trainer_group import TrainerGroup, TrainerWorker
from onpolicy.distributed.weight_transfer import WeightBucket, WeightRefs, pack
from onpolicy.utils.faults import Faults, GaveUp, RoleLost
from onpolicy.utils.timer import PhaseTimer

if TYPE_CHECKING:
    from onpolicy.config.schema import Config

GLANCE = 1.0
"""Seconds between two looks at the ranks."""
GRACE = 5.0
"""Seconds in which a rank that died shows, once another has complained of it."""


class Rank(Worker):
    """One rank, as an actor."""

    def __init__(self, config: Config, folder: str, rank: int, size: int) -> None:
        super().__init__(folder)
        self._config, self._rank, self._size = config, rank, size

    def set_up(self) -> None:
        from onpolicy.utils.quiet import quiet_libraries

        quiet_libraries()

    def meeting_point(self) -> str:
        """Where the others find this rank, on this machine's address in the cluster."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"tcp://{host}:{free.getsockname()[1]}"

    def enter(self, meeting_point: str) -> Any:
        """Joins the others and loads the model; returns the tokens of a micro-batch, or a ``Raised``."""
        return outcome(self._enter, meeting_point)

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        self.alive()
        return outcome(getattr(self._work, method), *arguments)

    def step(self, arguments: Sequence[Any]) -> Any:
        """The step's metrics and the seconds that its phases took."""
        answer = self.call("step", arguments)
        return answer if isinstance(answer, Raised) else (answer, self._work.clock.pop())

    def parcels(self) -> Iterator[WeightBucket]:
        """The student's weights, one parcel at a time."""
        for parcel in pack(self._work.trainer.weights()):
            self.alive()
            yield parcel

    def _enter(self, meeting_point: str) -> int:
        from onpolicy.models import open_model
        from onpolicy.trainer.deepspeed import join

        os.environ |= {"RANK": str(self._rank), "WORLD_SIZE": str(self._size), "LOCAL_RANK": "0"}
        if self._size > 1:
            join(meeting_point)
        resolved, clock = resolve(self._config), PhaseTimer()
        clock.on_phase = self.alive
        self._work = TrainerWorker(resolved, open_model(resolved), clock, size=self._size)
        return self._work.trainer.budget


class RayTrainerGroup(TrainerGroup):
    """All ranks, seen from the driver."""

    def __init__(self, resolved: ResolvedConfig, clock: PhaseTimer, faults: Faults) -> None:
        super().__init__(resolved)
        self._plan, self._clock, self._faults = resolved, clock, faults
        self._size, self._roles = resolved.config.roles.trainers, resolved.config.roles
        self._actors: list[Any] = []
        self._processes: list[Any] = []
        self._budget: int | None = None
        """Tokens in a micro-batch, once memory has run out."""
        self._folder = tempfile.TemporaryDirectory(prefix="onpolicy-ranks-")
        ray_cluster.join(resolved.config.roles)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for attempt in range(self._roles.restarts + 1):
            try:
                return self.restart()
            except RoleLost as lost:
                if attempt == self._roles.restarts:
                    raise GaveUp(f"trainer: {lost}; it did not come up {attempt + 1} times (roles.restarts)") from lost
                self._faults.record("trainer", f"{lost}; starting all ranks again")

    def restart(self) -> None:
        """New ranks in place of those there are; they have the reference model.

        Raises:
            RoleLost: one of them did not come up.
        """
        import ray

        self._dismiss()
        wanted = ray_cluster.resources(self._plan, gpus=1)
        if self._roles.address is None:  # gloo would look for the machine's own address
            environment = {"GLOO_SOCKET_IFNAME": "lo"} | wanted["runtime_env"]["env_vars"]
            wanted["runtime_env"] = {"env_vars": environment}
        config = self._config()
        for rank in range(self._size):
            actor = ray.remote(Rank).options(max_concurrency=3, **wanted)
            self._actors.append(actor.remote(config, os.getcwd(), rank, self._size))
        self._patience = STARTING * self._roles.patience
        here = ray.get_runtime_context().get_node_id()
        for node, pid in self._await([actor.hello.remote() for actor in self._actors]):
            self._processes.append(process_of(pid) if node == here else None)
        meeting_point = self._meeting_point()
        (self._tokens, *_) = self._await([actor.enter.remote(meeting_point) for actor in self._actors])
        self._patience = self._roles.patience

    def everywhere(self, method: str, *arguments: Any) -> Any:
        import ray

        given = ray.put(arguments)
        return self._await([actor.call.remote(method, given) for actor in self._actors])[0]

    def step(self, examples: Sequence[Any]) -> dict[str, float]:
        import ray

        given = ray.put((list(examples), self._coefficients.values()))
        metrics, seconds = self._await([actor.step.remote(given) for actor in self._actors])[0]
        self._clock.absorb(seconds)
        return dict(metrics)

    def weights(self) -> WeightRefs:
        """Gathered tensor by tensor; they lie in the object store and belong to the driver, whatever becomes of the ranks."""
        import ray

        first, *others = self._actors
        nothing = ray.put(())
        helping = [actor.call.remote("drain", nothing) for actor in others]
        stream = first.parcels.options(num_returns="streaming").remote()
        self._await([stream.completed(), *helping])
        return WeightRefs(list(stream))

    def close(self) -> None:
        self._dismiss()
        self._folder.cleanup()
        ray_cluster.leave()

    def _meeting_point(self) -> str:
        """On one machine a file, which nobody can reach from outside."""
        import ray

        if self._roles.address is None:
            return f"file://{self._folder.name}/{time.monotonic_ns()}"
        return str(ray.get(self._actors[0].meeting_point.remote()))

    def _config(self) -> Config:
        config = self._plan.config
        if self._budget is None:
            return config
        return dataclasses.replace(config, trainer={**config.trainer, "micro_batch_tokens": self._budget})

    def _await(self, refs: Sequence[Any]) -> list[Any]:
        """What the ranks answer, in their order; looks after them meanwhile.

        Raises:
            RoleLost: one of them died, hung, or ran out of memory. All are gone then.
        """
        import ray

        watch, open_, answers = HeartbeatMonitor(self._actors, self._patience), list(refs), {}
        while open_:
            ready, open_ = ray.wait(open_, timeout=GLANCE)
            for ref in ready:
                rank = list(refs).index(ref)
                try:
                    answer = ray.get(ref)
                except ray.exceptions.RayError as error:
                    self._lose(
                        rank, "died" if isinstance(error, ray.exceptions.ActorDiedError) else line_of(error), error
                    )
                if isinstance(answer, Raised):
                    self._raise(rank, answer.error())
                answers[rank] = answer
            if not ready and (found := watch.look()):
                self._lose(*found)
        return [answers[rank] for rank in range(len(refs))]

    def _raise(self, rank: int, error: Exception) -> None:
        """An error of the work itself, unless it only says that another rank is gone."""
        import torch

        if isinstance(error, torch.OutOfMemoryError) and self._tokens > 1:
            self._budget = self._tokens // 2
            self._lose(rank, f"ran out of memory; trainer.micro_batch_tokens is {self._budget} from now on", error)
        dead = HeartbeatMonitor(self._actors, self._patience).dead(GRACE)
        if dead is not None:
            self._lose(dead, "died", error)
        self._dismiss()
        raise error

    def _lose(self, rank: int, why: str, error: BaseException | None = None) -> None:
        self._dismiss()
        raise RoleLost(f"rank {rank} of {self._size} {why}") from error

    def _dismiss(self) -> None:
        """Ends all ranks for certain."""
        for actor, process in zip_longest(
            self._actors, self._processes
        ):  # those that did not come up have no process yet
            end(actor, process)
        self._actors, self._processes = [], []


class HeartbeatMonitor:
    """Looks after ranks that are at work: who died, who does not answer, whether anything moves at all."""

    def __init__(self, actors: Sequence[Any], patience: float) -> None:
        self._actors, self._patience = actors, patience
        self._pings: dict[int, Any] = {}
        self._progress: dict[int, Any] = {}
        self._answered = dict.fromkeys(range(len(actors)), time.monotonic())
        self._moved = self._looked = time.monotonic()

    def look(self) -> tuple[int, str, BaseException | None] | None:
        """The rank that is lost, and why."""
        import ray

        now = time.monotonic()
        if now - self._looked > 10 * GLANCE:  # this process stood still itself
            self._answered, self._moved = dict.fromkeys(self._answered, now), now
        self._looked = now
        for rank, actor in enumerate(self._actors):
            if rank not in self._pings:
                self._pings[rank] = actor.ping.remote()
            elif ray.wait([self._pings[rank]], timeout=0)[0]:
                try:
                    progress = ray.get(self._pings.pop(rank))
                except ray.exceptions.RayError as error:
                    return rank, "died", error
                self._answered[rank] = now
                if progress != self._progress.get(rank):
                    self._progress[rank], self._moved = progress, now
        silent = min(self._answered, key=lambda rank: self._answered[rank])
        if now - self._answered[silent] > self._patience:
            return silent, f"did not answer for {self._patience:g} s (roles.patience)", None
        if now - self._moved > self._patience:
            return silent, f"and the others gave no sign of progress for {self._patience:g} s (roles.patience)", None
        return None

    def dead(self, seconds: float) -> int | None:
        """The rank that dies within so many seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = self.look()
            if found is not None:
                return found[0]
            time.sleep(0.1)
        return None
