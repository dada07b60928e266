"""The scored rollouts of one step; with dynamic sampling, only groups in which some rollouts are correct and some are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onpolicy.data.cursor import PromptCursor
from onpolicy.protocols import Sampler
from onpolicy.types import Metrics, RolloutGroup, ScoredGroup
from onpolicy.utils.timer import PhaseTimer


@dataclass(frozen=True)
class RolloutSampler:
    """Samples and scores rollouts until the step has its groups."""

    generator: Sampler
    prompts: PromptCursor
    score: Callable[[Sequence[RolloutGroup]], list[ScoredGroup]]
    timer: PhaseTimer
    seed_of: Callable[[int], int]
    batches: int = 0
    """0 keeps every group. Otherwise groups that are all correct or all incorrect are left out and up to so many batches are drawn
    (DAPO's dynamic sampling, arXiv 2503.14476, section 3.2, on correctness and not on the sum of rewards)."""

    def sample(self, step: int) -> tuple[list[ScoredGroup], Metrics]:
        kept: list[ScoredGroup] = []
        last: list[ScoredGroup] = []
        drawn = tokens = 0
        while not drawn or (drawn < self.batches and len(kept) < self.prompts.batch_size):
            with self.timer.phase("generate"):
                groups = self.generator.generate(self.prompts.next(), seed=self.seed_of(step) + 104_729 * drawn)
            with self.timer.phase("reward"):
                last = self.score(groups)
            kept += [g for g in last if not self.batches or g.mixed]
            drawn += 1
            tokens += sum(r.num_sampled for group in groups for r in group.rollouts)
        metrics = {"rollout/sampled_tokens": float(tokens)}
        if self.batches:
            metrics |= {
                "rollout/batches": float(drawn),
                "rollout/mixed_groups": len(kept) / (drawn * self.prompts.batch_size),
            }
        return kept[: self.prompts.batch_size] or last, metrics
