"""Rewards computed in processes of their own, several groups at a time. What they weigh is decided in the driver."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onpolicy.annotation.scoring import Scorer, evaluate_rewards
from onpolicy.config.resolve import reward_sections
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Coefficients, coefficients_in
from onpolicy.distributed import ray_cluster
from onpolicy.distributed.actor import Worker
from onpolicy.distributed.actor_pool import ActorPool
from onpolicy.distributed.remote_errors import outcome
from onpolicy.distributed.supervisor import ActorLost
from onpolicy.rewards.base import RewardInput
from onpolicy.types import RewardBreakdown
from onpolicy.utils.faults import Faults, GaveUp

if TYPE_CHECKING:
    from onpolicy.config.schema import Config

TRIES = 3
"""Workers that one group may cost."""


@dataclass(frozen=True)
class Task:
    """One group, and the scheduled options of the rewards as they are now."""

    samples: Sequence[RewardInput]
    values: Mapping[str, float]


class RewardWorker(Worker):
    """The configured rewards, as an actor."""

    def __init__(self, config: Config, folder: str) -> None:
        super().__init__(folder)
        self._config = config

    def set_up(self) -> None:
        self._functions = {s.plugin.name: s.plugin.bind() for s in reward_sections(self._config)}
        self._scheduled = Coefficients([c for f in self._functions.values() for c in coefficients_in(f)])

    def measure(self, task: Task) -> Any:
        self._scheduled.load_values(task.values)
        return outcome(evaluate_rewards, self._functions, task.samples)


class Measuring:
    """The duty of the reward workers (``onpolicy.distributed.actor_pool``)."""

    role = "rewards"

    def __init__(self, resolved: ResolvedConfig) -> None:
        self._plan = resolved
        self._names = ", ".join(s.plugin.name for s in resolved.rewards)

    def start(self) -> Any:
        import ray

        return (
            ray.remote(RewardWorker)
            .options(**ray_cluster.resources(self._plan, gpus=0))
            .remote(self._plan.config, os.getcwd())
        )

    def renew(self, actor: Any, state: Any) -> Any:
        raise NotImplementedError("reward workers have no state")

    def send(self, actor: Any, task: Task) -> Any:
        return actor.measure.remote(task)

    def accept(self, task: Task, answer: Any, *, before: Any, now: Any) -> list[RewardBreakdown]:
        return list(answer)

    def harmless(self, error: Exception) -> bool:
        return True

    def hopeless(self, task: Task, losses: int, lost: ActorLost) -> Exception | None:
        if losses < TRIES:
            return None
        first = task.samples[0].id
        return GaveUp(f"rewards: the group of {first!r} cost {losses} workers under {self._names}; the last one {lost}")


@dataclass(frozen=True, kw_only=True)
class RemoteScorer(Scorer):
    """A scorer whose rewards are computed by workers."""

    crew: ActorPool
    values: Callable[[], Mapping[str, float]]
    """The scheduled numbers of the run as they are now."""

    def evaluate_rewards(self, groups: Sequence[Sequence[RewardInput]]) -> list[list[RewardBreakdown]]:
        values = self.values()
        futures: list[Future[list[RewardBreakdown]]] = self.crew.submit(Task(samples, values) for samples in groups)
        try:
            return [future.result() for future in futures]
        finally:
            self.crew.cancel(futures)

    def close(self) -> None:
        if not self.crew.closed:
            self.crew.close()
            ray_cluster.leave()


def remote_scorer(resolved: ResolvedConfig, scorer: Scorer, faults: Faults | None = None) -> RemoteScorer:
    """The same scorer with ``roles.rewards`` workers."""
    ray_cluster.join(resolved.config.roles)
    return RemoteScorer(
        rewards=scorer.rewards,
        final_part=scorer.final_part,
        correctness=scorer.correctness,
        crew=ActorPool(Measuring(resolved), resolved.config.roles.rewards, resolved.config.roles, faults),
        values=Coefficients(resolved.coefficients).values,
    )
