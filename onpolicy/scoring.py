"""Rollouts -> rewards. Sees a whole group at a time, because some rewards compare siblings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rewards.base
from onpolicy.types import RolloutGroup
from rewards.base import RewardInput

FinalPart = Callable[[str], str]
"""Completion text -> the part after the thinking."""


@dataclass(frozen=True)
class Reward:
    """One summand of the reward."""

    name: str
    weight: float
    function: Callable[..., Any]
    """In any of the shapes ``rewards.base`` calls, options bound."""


@dataclass(frozen=True)
class Scored:
    total: float
    """Weighted sum of ``parts``."""
    parts: Mapping[str, float]
    """By reward, unweighted; one that does not apply to this sample is absent."""


def score_group(group: RolloutGroup, rewards_: Sequence[Reward], final_part: FinalPart) -> list[Scored]:
    """Every reward of every rollout.

    Raises:
        rewards.base.RewardError: a reward raised or returned no number; the message names it and the sample.
    """
    samples = reward_inputs(group, final_part)
    parts: list[dict[str, float]] = [{} for _ in samples]
    for reward in rewards_:
        for part, value in zip(parts, rewards.base.score(reward.function, samples), strict=True):
            if value is not None:
                part[reward.name] = value
    weights = {r.name: r.weight for r in rewards_}
    return [Scored(total=sum(weights[name] * value for name, value in part.items()), parts=part) for part in parts]


def reward_inputs(group: RolloutGroup, final_part: FinalPart) -> list[RewardInput]:
    """What reward functions read, in the order of the rollouts."""
    prompt = group.prompt
    return [
        RewardInput(
            id=f"{prompt.id} rollout {i}",
            prompt=prompt.fields.get("prompt", list(prompt.messages)),
            completion=rollout.text,
            final=final_part(rollout.text),
            completion_ids=rollout.completion_ids,
            num_tokens=len(rollout.completion_ids),
            finish_reason=rollout.finish_reason,
            answer=prompt.fields.get("answer"),
            fields=prompt.fields,
        )
        for i, rollout in enumerate(group.rollouts)
    ]
