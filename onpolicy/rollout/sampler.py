"""The scored rollouts of one step; with dynamic sampling, only groups in which some rollouts are correct and some are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onpolicy.data.cursor import PromptCursor
from onpolicy.protocols import Sampler
from onpolicy.types import Metrics, RolloutGroup, ScoredGroup
from onpolicy.utils.timer import PhaseTimer


def nothing(group: RolloutGroup) -> None:
    """Begins nothing with a group."""


@dataclass(frozen=True)
class RolloutSampler:
    """Samples and scores rollouts until the step has its groups."""

    generator: Sampler
    prompts: PromptCursor
    score: Callable[..., list[ScoredGroup]]
    """``(groups, begun)``: the groups, and by place among them what ``begin`` returned."""
    timer: PhaseTimer
    seed_of: Callable[[int], int]
    batches: int = 0
    """0 keeps every group. Otherwise groups that are all correct or all incorrect are left out and up to so many batches are drawn
    (DAPO's dynamic sampling, arXiv 2503.14476, section 3.2, on correctness and not on the sum of rewards)."""
    begin: Callable[[RolloutGroup], Any] = nothing
    """Called with each group as soon as it is whole, so that scoring can begin while others are sampled."""

    def sample(self, step: int) -> tuple[list[ScoredGroup], Metrics]:
        kept: list[ScoredGroup] = []
        last: list[ScoredGroup] = []
        drawn = tokens = 0
        while not drawn or (drawn < self.batches and len(kept) < self.prompts.batch_size):
            begun = _Begun(self.begin)
            with self.timer.phase("generate"):
                seed = self.seed_of(step) + 104_729 * drawn
                groups = self.generator.generate(self.prompts.next(), seed=seed, on_group=begun.add)
            with self.timer.phase("reward"):
                last = self.score(groups, begun.by_place)
            kept += [g for g in last if not self.batches or g.mixed]
            drawn += 1
            tokens += sum(r.num_written for group in groups for r in group.rollouts)
        metrics = {"rollout/sampled_tokens": float(tokens)}
        if self.batches:
            metrics |= {
                "rollout/batches": float(drawn),
                "rollout/mixed_groups": len(kept) / (drawn * self.prompts.batch_size),
            }
        return kept[: self.prompts.batch_size] or last, metrics


class _Begun:
    """What was begun with the groups of one call of ``generate``."""

    def __init__(self, begin: Callable[[RolloutGroup], Any]) -> None:
        self._begin = begin
        self.by_place: dict[int, Any] = {}

    def add(self, place: int, group: RolloutGroup) -> None:
        self.by_place[place] = self._begin(group)
