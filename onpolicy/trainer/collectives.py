"""What the ranks of a trainer share out and add up. ``SingleProcess`` is a trainer without others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.objective import MetricAccumulator
from onpolicy.types import Example


class SingleProcess:
    """One rank: everything is its own."""

    rank, size = 0, 1

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The rollouts of this rank."""
        return examples

    def rounds(self, passes: int) -> int:
        """The most forward passes that any rank has to make."""
        return passes

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, in order."""
        return [value]

    def summed(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Each number added up over the ranks."""
        return dict(numbers)

    def collect(self, tally: MetricAccumulator, telemetry: TokenTelemetry | None) -> None:
        """Puts into both what all ranks have seen."""


class ProcessGroup(SingleProcess):
    """The ranks of a process group of torch. Each knows all rollouts of a step, so that they agree without asking."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        """About as many tokens as the other ranks have; a group stays together where there are enough groups."""
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

    def rounds(self, passes: int) -> int:
        return max(self.gathered(passes))

    def summed(self, numbers: Mapping[str, float]) -> dict[str, float]:
        everyone = self.gathered(dict(numbers))
        return {name: sum(own[name] for own in everyone) for name in numbers}

    def collect(self, tally: MetricAccumulator, telemetry: TokenTelemetry | None) -> None:
        seen = self.gathered((tally, None if telemetry is None else telemetry.seen()))
        for rank, (other, observed) in enumerate(seen):
            if rank != self.rank:
                tally.absorb(other)
                if telemetry is not None:
                    telemetry.absorb(observed)

    def gathered(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone
