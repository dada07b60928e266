"""A scorer that hands groups to processes as they arrive, and does itself what has to be done in this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from onpolicy.annotation.group_work import GroupDone, GroupTask
from onpolicy.annotation.scoring import NOTHING_BEGUN, Scorer, reward_inputs, scored_group, with_finals
from onpolicy.types import RolloutGroup, ScoredGroup
from onpolicy.utils.worker_processes import NotDone, WorkerProcesses


@dataclass(frozen=True)
class BegunGroup:
    """A group that a process has, or will have."""

    group: RolloutGroup
    values: Mapping[str, float]
    """The scheduled options that its rewards are evaluated with."""
    future: Future[GroupDone]

    def done(self) -> GroupDone:
        """Waits; nothing where the process died, or a reward raised, which it does again where it is evaluated next."""
        try:
            return self.future.result()
        except NotDone:
            return GroupDone({}, None)


@dataclass(frozen=True, kw_only=True)
class PooledScorer(Scorer):
    """The same scores as those of ``inner``, to the last bit."""

    inner: Scorer
    """Evaluates the rewards that have not been evaluated elsewhere."""
    processes: WorkerProcesses
    """Their job is a ``GroupWork``."""
    values: Callable[[], Mapping[str, float]]
    """The run's scheduled numbers at this step."""

    def begin(self, group: RolloutGroup) -> BegunGroup:
        group, values = with_finals(group, self.final_part), dict(self.values())
        return BegunGroup(group, values, self.processes.submit(GroupTask(group, values)))

    def score(
        self, groups: Sequence[RolloutGroup], begun: Mapping[int, BegunGroup | None] = NOTHING_BEGUN
    ) -> list[ScoredGroup]:
        work = [begun.get(place) or self.begin(group) for place, group in enumerate(groups)]
        inputs = [reward_inputs(own.group, self.final_part, self.steps) for own in work]
        values = dict(self.values())
        # one that was sampled ahead may have been begun in an earlier step, whose options were others
        known = (own.done().rewards if own.values == values else {} for own in work)
        evaluated = self.inner.evaluate_rewards(inputs, known)
        return [
            scored_group(own.group, found, self.rewards, correctness=self.correctness, texts=own.done().texts)
            for own, found in zip(work, evaluated, strict=True)
        ]

    def close(self) -> None:
        self.inner.close()
        self.processes.close()
