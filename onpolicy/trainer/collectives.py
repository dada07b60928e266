"""Sharding and reductions across a trainer's ranks. ``SingleProcess`` is the no-op of one rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.objective import MetricAccumulator
from onpolicy.types import Example


class SingleProcess:
    """One rank, which has everything."""

    rank, size = 0, 1

    def shard(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The rollouts that this rank trains on."""
        return examples

    def max_passes(self, passes: int) -> int:
        """The largest number of forward passes that any rank makes."""
        return passes

    def all_gather(self, value: Any) -> list[Any]:
        """The value of every rank, in order of rank."""
        return [value]

    def all_sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Each number summed over the ranks."""
        return dict(numbers)

    def merge(self, metrics: MetricAccumulator, telemetry: TokenTelemetry | None) -> None:
        """Adds to both what the other ranks have measured."""


class ProcessGroup(SingleProcess):
    """The ranks of a process group. Each knows all rollouts of a step, so the shards need no communication."""

    def __init__(self, rank: int, size: int, group: Any = None) -> None:
        """``group``: None for torch's own, of all ranks."""
        self.rank, self.size, self._group = rank, size, group

    def shard(self, examples: Sequence[Example]) -> Sequence[Example]:
        """About the same number of tokens on every rank; a group is not split if there are at least two groups per rank."""
        groups: dict[Any, list[int]] = {}
        for i, example in enumerate(examples):
            groups.setdefault(example.group_id, []).append(i)
        units = list(groups.values()) if len(groups) >= 2 * self.size else [[i] for i in range(len(examples))]
        weight = {i: len(e.rollout.prompt_ids) + len(e.rollout.completion_ids) for i, e in enumerate(examples)}
        loads, mine = [0] * self.size, []
        for unit in sorted(units, key=lambda unit: (-sum(weight[i] for i in unit), unit[0])):
            rank = loads.index(min(loads))
            loads[rank] += sum(weight[i] for i in unit)
            mine += unit if rank == self.rank else []
        return [examples[i] for i in sorted(mine)]

    def max_passes(self, passes: int) -> int:
        return max(self.all_gather(passes))

    def all_sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        ranks = self.all_gather(dict(numbers))
        return {name: sum(own[name] for own in ranks) for name in numbers}

    def merge(self, metrics: MetricAccumulator, telemetry: TokenTelemetry | None) -> None:
        ranks = self.all_gather((metrics, None if telemetry is None else telemetry.seen()))
        for rank, (other, observed) in enumerate(ranks):
            if rank != self.rank:
                metrics.absorb(other)
                if telemetry is not None:
                    telemetry.absorb(observed)

    def all_gather(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._group)
        return found
