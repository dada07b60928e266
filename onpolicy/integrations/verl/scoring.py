"""Rows of verl with the rewards that its workers computed -> scored groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isnan, nan
from typing import Any

from onpolicy.annotation.scoring import (
    FinalPart,
    Reward,
    evaluate_rewards,
    reward_inputs,
    scored_group,
    with_feedback,
    with_finals,
)
from onpolicy.integrations.verl.rows import feedback_of, parts_of, score_of
from onpolicy.types import RolloutGroup, RolloutReward, ScoredGroup


def sees_siblings(function: Callable[..., Any]) -> bool:
    """Whether a reward takes the whole group at once, as TRL's do, and cannot be computed sample by sample."""
    return "completions" in inspect.signature(function).parameters


def score_rows(
    group: RolloutGroup,
    rows: Sequence[Mapping[str, Any]],
    rewards: Sequence[Reward],
    final_part: FinalPart,
    *,
    right: str,
) -> ScoredGroup:
    """Combines the rewards of each trajectory; without rewards of ours, verl's score is the only part.

    Args:
        group: the rollouts
        rows: of each rollout one, of a conversation the last
        right: name of the reward that decides which rollouts are correct
    """
    group = with_feedback(with_finals(group, final_part), [feedback_of(row) for row in rows])
    if not rewards:
        failed = [rollout.failed for rollout in group.rollouts]
        scores = tuple(nan if lost else score_of(row) for lost, row in zip(failed, rows, strict=True))
        scored = [
            RolloutReward(0.0, 0.0, {}) if isnan(score) else RolloutReward(score, 0.0, {"score": score} | parts_of(row))
            for score, row in zip(scores, rows, strict=True)
        ]
        return ScoredGroup(group, tuple(scored), scores)
    names = {r.name for r in rewards}
    together = evaluate_rewards(
        {r.name: r.function for r in rewards if sees_siblings(r.function)}, reward_inputs(group, final_part)
    )
    alone = [
        {name: value for name, value in parts_of(row).items() if name in names}
        for row, rollout in zip(rows, group.rollouts, strict=True)
        if not rollout.failed
    ]
    evaluated = [
        replace(other, breakdown={**one, **other.breakdown}) for one, other in zip(alone, together, strict=True)
    ]
    return scored_group(group, evaluated, rewards, correctness=right)
