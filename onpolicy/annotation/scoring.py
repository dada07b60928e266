"""Rollouts -> rewards. Sees a whole group at a time, because some rewards compare siblings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onpolicy.config.schedules import Coefficient
from onpolicy.rewards import base
from onpolicy.rewards.base import RewardInput
from onpolicy.types import RIGHT, RewardBreakdown, RolloutGroup, RolloutReward, ScoredGroup

FinalPart = Callable[[str], str]
"""Completion text -> the part after the thinking."""


@dataclass(frozen=True)
class Reward:
    """One summand of the reward."""

    name: str
    weight: float | Coefficient
    function: Callable[..., Any]
    """In any of the shapes ``rewards.base`` calls, options bound."""
    bonus: bool = False
    """Whether it is added to the advantage after ``credit`` instead of being part of what ``credit`` normalises."""
    when: str = "always"
    """``always``, ``correct`` or ``wrong``: which answers get it; the others get 0."""


@dataclass(frozen=True)
class Scorer:
    """All rewards of a run."""

    rewards: Sequence[Reward]
    final_part: FinalPart
    correctness: str
    """Name of the reward that decides which answers are correct (``ResolvedConfig.correctness_name``)."""

    def __call__(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        """Raises base.RewardError where a reward raised or returned no number."""
        measured = self.measured([reward_inputs(group, self.final_part) for group in groups])
        return [self._judged(group, parts) for group, parts in zip(groups, measured, strict=True)]

    def measured(self, groups: Sequence[Sequence[RewardInput]]) -> list[list[RewardBreakdown]]:
        """The parts of every sample of every group."""
        return [measure({r.name: r.function for r in self.rewards}, samples) for samples in groups]

    def close(self) -> None:
        """Ends what computes the rewards elsewhere."""

    def _judged(self, group: RolloutGroup, parts: Sequence[RewardBreakdown]) -> ScoredGroup:
        scored = weigh(parts, self.rewards, right=self.correctness)
        return ScoredGroup(group, tuple(scored), tuple(s.parts.get(self.correctness, s.total) for s in scored))


def score_group(
    group: RolloutGroup, rewards_: Sequence[Reward], final_part: FinalPart, *, right: str = ""
) -> list[RolloutReward]:
    """Every reward of every rollout; ``right`` names the one that says what is right.

    Raises:
        RewardError: a reward raised or returned no number; the message names it and the sample.
    """
    return weigh(
        measure({r.name: r.function for r in rewards_}, reward_inputs(group, final_part)), rewards_, right=right
    )


def measure(functions: Mapping[str, Callable[..., Any]], samples: Sequence[RewardInput]) -> list[RewardBreakdown]:
    """What each reward says of each sample of one group; needs nothing but the functions.

    Raises:
        RewardError: a reward raised or returned no number; the message names it and the sample.
    """
    parts: list[dict[str, float]] = [{} for _ in samples]
    for name, function in functions.items():
        for part, value in zip(parts, base.score(function, samples), strict=True):
            if value is not None:
                part[name] = value
    return list(parts)


def weigh(measured: Sequence[RewardBreakdown], rewards_: Sequence[Reward], *, right: str = "") -> list[RolloutReward]:
    """The sums, with the weights as they are now; a reward that this answer does not get counts 0."""

    def weighted(part: RewardBreakdown, *, bonus: bool) -> float:
        return sum(float(r.weight) * part[r.name] for r in rewards_ if r.bonus == bonus and r.name in part)

    scored = []
    for given in measured:
        verdict = "correct" if given.get(right, 0.0) >= RIGHT else "wrong"
        part = dict(given) | {r.name: 0.0 for r in rewards_ if r.name in given and r.when not in ("always", verdict)}
        scored.append(RolloutReward(weighted(part, bonus=False), weighted(part, bonus=True), part))
    return scored


def reward_inputs(group: RolloutGroup, final_part: FinalPart) -> list[RewardInput]:
    """What reward functions read, in the order of the rollouts."""
    prompt = group.prompt
    return [
        RewardInput(
            id=f"{prompt.id} rollout {i}",
            prompt=prompt.fields.get("prompt", list(prompt.messages)),
            completion=rollout.text,
            final=final_part(rollout.text),
            completion_ids=rollout.sampled_ids,
            num_tokens=rollout.num_sampled,
            finish_reason=rollout.finish_reason,
            answer=prompt.fields.get("answer"),
            fields=prompt.fields,
        )
        for i, rollout in enumerate(group.rollouts)
    ]
