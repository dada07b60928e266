"""Rewards as Ray tasks, one per group. The sums of their weighted parts are formed in the driver."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from onpolicy.annotation.scoring import NOTHING_KNOWN, Evaluated, Scorer, evaluate_rewards
from onpolicy.config.load import build
from onpolicy.config.resolve import reward_sections
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Coefficients, coefficients_in
from onpolicy.distributed import ray_cluster
from onpolicy.distributed.heartbeat import STARTUP_FACTOR, Deadline
from onpolicy.distributed.processes import kill_tree, local_process
from onpolicy.distributed.remote_errors import one_line, picklable_errors
from onpolicy.distributed.tasks import ActorLost
from onpolicy.rewards.base import RewardInput
from onpolicy.utils.faults import Faults, GaveUp

MAX_WORKERS_LOST = 3
"""Workers that one group may cost."""
POLL = 0.2
"""Seconds that a thread waits for an answer at a time."""


@dataclass(frozen=True)
class RewardTask:
    """One group, and the scheduled options of the rewards at this step."""

    samples: Sequence[RewardInput]
    values: Mapping[str, float]


def score_rewards(config: str, folder: str, task: RewardTask) -> Iterator[Any]:
    """The Ray task: yields its node and process id once the rewards are loaded, then what the rewards say of each sample.

    Args:
        config: the run's config as JSON
        folder: the driver's working directory
    """
    import ray

    with picklable_errors():
        with contextlib.suppress(OSError):  # another machine may have no such folder
            os.chdir(folder)
        functions, scheduled = load_rewards(config)
        yield ray.get_runtime_context().get_node_id(), os.getpid()
        scheduled.load_values(task.values)
        yield evaluate_rewards(functions, task.samples)


@functools.cache
def load_rewards(config: str) -> tuple[dict[str, Callable[..., Any]], Coefficients]:
    """The configured rewards and their scheduled options; loaded once per worker process."""
    functions = {s.plugin.name: s.plugin.bind() for s in reward_sections(build(json.loads(config)))}
    return functions, Coefficients([c for function in functions.values() for c in coefficients_in(function)])


class RewardTasks:
    """Scores ``distributed.num_reward_workers`` groups at a time; a group whose worker dies or hangs is scored again.

    Ray reuses its worker processes, and keeps as many idle ones as a node has cores.
    """

    def __init__(self, resolved: ResolvedConfig, faults: Faults | None = None) -> None:
        import ray

        roles = resolved.config.distributed
        self._names = ", ".join(s.plugin.name for s in resolved.rewards)
        self._config, self._timeout = json.dumps(dataclasses.asdict(resolved.config)), roles.heartbeat_timeout_s
        self._on_fault: Callable[[str, str], None] = faults.record if faults else (lambda role, what: None)
        self._closed = threading.Event()
        self._threads = ThreadPoolExecutor(roles.num_reward_workers, thread_name_prefix="rewards")
        ray_cluster.join(roles)
        with ray_cluster.leave_on_error():
            resources = ray_cluster.resources(resolved, gpus=0)
        self._function = ray.remote(score_rewards).options(num_returns="streaming", max_retries=0, **resources)

    def score(self, groups: Sequence[Sequence[RewardInput]], values: Mapping[str, float]) -> list[list[Evaluated]]:
        """What the rewards say of every sample of every group, in their order.

        Raises:
            RewardError: a reward raised or returned no number.
            GaveUp: a group cost ``MAX_WORKERS_LOST`` workers.
        """
        futures = [self._threads.submit(self._score_group, RewardTask(samples, values)) for samples in groups]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Ends the tasks under way."""
        if not self._closed.is_set():
            self._closed.set()
            self._threads.shutdown(cancel_futures=True)
            ray_cluster.leave()

    def _score_group(self, task: RewardTask) -> list[Evaluated]:
        for attempt in range(1, MAX_WORKERS_LOST + 1):
            try:
                return self._attempt(task)
            except ActorLost as lost:
                if attempt == MAX_WORKERS_LOST:
                    raise GaveUp(
                        f"rewards: the group of {task.samples[0].id!r} cost {attempt} workers under {self._names}; "
                        f"the last one {lost}"
                    ) from lost
                self._on_fault("rewards", f"a worker {lost}; a new one takes its place")
        raise AssertionError("unreachable")

    def _attempt(self, task: RewardTask) -> list[Evaluated]:
        """Raises ActorLost: the worker died, or gave no answer within ``distributed.heartbeat_timeout_s`` after loading."""
        import ray

        stream, process = self._function.remote(self._config, os.getcwd(), task), None
        startup = Deadline(STARTUP_FACTOR * self._timeout)
        try:
            process = local_process(*self._next(stream, startup, f"did not start within {startup.seconds:g} s"))
            stalled = f"gave no sign of progress for {self._timeout:g} s (distributed.heartbeat_timeout_s)"
            return list(self._next(stream, Deadline(self._timeout), stalled))
        except (ActorLost, CancelledError):
            with contextlib.suppress(Exception):
                ray.cancel(stream, force=True)
            kill_tree(process)
            raise

    def _next(self, stream: Any, deadline: Deadline, late: str) -> Any:
        import ray

        while not ray.wait([stream], timeout=POLL)[0]:
            if self._closed.is_set():
                raise CancelledError
            if deadline.passed():
                raise ActorLost(late)
        try:
            return ray.get(next(stream))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.WorkerCrashedError as error:
            raise ActorLost("died") from error
        except Exception as error:  # of Ray, or an answer that cannot be unpickled
            raise ActorLost(f"failed ({one_line(error)})") from error


@dataclass(frozen=True, kw_only=True)
class RemoteScorer(Scorer):
    """A scorer whose rewards are computed by Ray tasks."""

    tasks: RewardTasks
    values: Callable[[], Mapping[str, float]]
    """The run's scheduled numbers at this step."""

    def evaluate_rewards(
        self,
        groups: Sequence[Sequence[RewardInput]],
        known: Iterable[Mapping[str, Sequence[Evaluated]]] = NOTHING_KNOWN,
    ) -> list[list[Evaluated]]:
        """In Ray's workers, all of them, whatever is known."""
        return self.tasks.score(groups, self.values())

    def close(self) -> None:
        self.tasks.close()


def remote_scorer(resolved: ResolvedConfig, scorer: Scorer, faults: Faults | None = None) -> RemoteScorer:
    """The same scorer, with its rewards computed in ``distributed.num_reward_workers`` workers."""
    return RemoteScorer(
        rewards=scorer.rewards,
        final_part=scorer.final_part,
        correctness=scorer.correctness,
        steps=scorer.steps,
        tasks=RewardTasks(resolved, faults),
        values=Coefficients(resolved.coefficients).values,
    )
