"""Rollouts -> rewards, a whole group at a time, because some rewards compare siblings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from math import nan
from types import MappingProxyType
from typing import Any

from onpolicy.config.schedules import Coefficient
from onpolicy.rewards import base
from onpolicy.rewards.base import RewardInput, TrainerState
from onpolicy.types import (
    CORRECT_THRESHOLD,
    EnvironmentOutcome,
    RewardBreakdown,
    RolloutGroup,
    RolloutReward,
    ScoredGroup,
)

Begun = Any
"""What a scorer has begun for a group (``Scorer.begin``): its own affair."""
NOTHING_BEGUN: Mapping[int, Begun] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What one reward, or all of them, say of one rollout."""

    breakdown: RewardBreakdown
    feedback: str | None = None
    """The text beside the scores (``Rollout.feedback``)."""


NOTHING_KNOWN: Iterable[Mapping[str, Sequence[Evaluated]]] = repeat(MappingProxyType({}))
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
    """Which answers get it, the others get 0: ``always``, ``correct``, ``wrong``, or those that another reward, named here, is at least
    ``CORRECT_THRESHOLD`` for."""


@dataclass(frozen=True)
class Scorer:
    """All rewards of a run."""

    rewards: Sequence[Reward]
    final_part: FinalPart
    correctness: str
    """Name of the reward that decides which answers are correct (``ResolvedConfig.correctness_name``)."""
    steps: int | None = None
    """Of the run, where it is known."""

    def begin(self, group: RolloutGroup) -> Begun | None:
        """Called as soon as a group is whole, by whoever samples: what can be begun before ``score`` is; None where that is nothing."""
        return None

    def score(
        self, groups: Sequence[RolloutGroup], begun: Mapping[int, Begun | None] = NOTHING_BEGUN
    ) -> list[ScoredGroup]:
        """Scores every rollout of every group.

        Args:
            groups: the rollouts
            begun: by place among the groups, what ``begin`` returned

        Raises:
            RewardError: a reward raised or returned no number; the message names it and the sample.
        """
        groups = [with_finals(group, self.final_part) for group in groups]
        evaluated = self.evaluate_rewards([reward_inputs(group, self.final_part, self.steps) for group in groups])
        return [
            scored_group(group, found, self.rewards, correctness=self.correctness)
            for group, found in zip(groups, evaluated, strict=True)
        ]

    def evaluate_rewards(
        self,
        groups: Sequence[Sequence[RewardInput]],
        known: Iterable[Mapping[str, Sequence[Evaluated]]] = NOTHING_KNOWN,
    ) -> list[list[Evaluated]]:
        """Evaluates every reward on every sample of every group.

        Args:
            groups: their samples
            known: by group, the rewards that somebody has evaluated already (``evaluate_reward``)
        """
        functions = {r.name: r.function for r in self.rewards}
        return [evaluate_rewards(functions, samples, given) for samples, given in zip(groups, known, strict=False)]

    def close(self) -> None:
        """Ends the processes that evaluate rewards, where there are any."""


def score_group(
    group: RolloutGroup,
    rewards: Sequence[Reward],
    final_part: FinalPart,
    *,
    correctness: str = "",
    steps: int | None = None,
) -> list[RolloutReward]:
    """Scores one group: evaluates its rewards and combines them.

    Raises:
        RewardError: a reward raised or returned no number; the message names it and the sample.
    """
    found = evaluate_rewards({r.name: r.function for r in rewards}, reward_inputs(group, final_part, steps))
    return list(scored_group(group, found, rewards, correctness=correctness).rewards)


def evaluate_rewards(
    functions: Mapping[str, Callable[..., Any]],
    samples: Sequence[RewardInput],
    known: Mapping[str, Sequence[Evaluated]] = MappingProxyType({}),
) -> list[Evaluated]:
    """Evaluates each reward on each sample of one group, in order, but for those that are known.

    Args:
        functions: by name
        samples: of one group
        known: what ``evaluate_reward`` returned for some of the functions

    Raises:
        RewardError: a reward raised or returned no number; the message names it and the sample.
    """
    breakdowns: list[dict[str, float]] = [{} for _ in samples]
    feedback: list[list[str]] = [[] for _ in samples]
    for name, function in functions.items():
        parts = known[name] if name in known else evaluate_reward(name, function, samples)
        for breakdown, texts, part in zip(breakdowns, feedback, parts, strict=True):
            breakdown |= part.breakdown
            texts += [part.feedback] if part.feedback else []
    return [Evaluated(own, "\n\n".join(texts) or None) for own, texts in zip(breakdowns, feedback, strict=True)]


def evaluate_reward(name: str, function: Callable[..., Any], samples: Sequence[RewardInput]) -> list[Evaluated]:
    """One reward of each sample of one group; needs nothing but the function. What it logs stands under ``<reward>/<name>``.

    Raises:
        RewardError: it raised or returned no number; the message names it and the sample.
    """
    logged: list[dict[str, float]] = [{} for _ in samples]
    feedback: list[str | None] = [None] * len(samples)
    values = base.score(function, samples, logged, feedback) if samples else []
    return [
        Evaluated(({} if value is None else {name: value}) | {f"{name}/{what}": n for what, n in own.items()}, text)
        for value, own, text in zip(values, logged, feedback, strict=True)
    ]


def combine(
    breakdowns: Sequence[RewardBreakdown], rewards: Sequence[Reward], *, correctness: str = ""
) -> list[RolloutReward]:
    """Adds up each rollout's rewards with the weights as they are now; a reward that this rollout does not get counts 0.

    Args:
        breakdowns: by rollout
        rewards: all rewards of the run
        correctness: name of the reward that decides which rollouts are correct
    """

    def weighted_sum(breakdown: RewardBreakdown, among: Sequence[Reward]) -> float:
        return sum(float(r.weight) * breakdown[r.name] for r in among if r.name in breakdown)

    names = {r.name for r in rewards}
    gates = names.intersection(r.when for r in rewards)
    bonuses, normalised = ([r for r in rewards if r.bonus is bonus] for bonus in (True, False))
    deciding = [r for r in normalised if r.name == correctness]
    combined = []
    for given in breakdowns:
        passed = {"always", *(gate for gate in gates if given.get(gate, 0.0) >= CORRECT_THRESHOLD)}
        closed = {r.name for r in rewards if r.when in gates - passed}
        correct = correctness not in closed and given.get(correctness, 0.0) >= CORRECT_THRESHOLD
        if correctness not in names - given.keys():
            passed.add("correct" if correct else "wrong")
        own = dict(given) | {r.name: 0.0 for r in rewards if r.name in given and r.when not in passed}
        normalised_reward, bonus, correct_alone = (
            weighted_sum(own, among) for among in (normalised, bonuses, deciding)
        )
        combined.append(RolloutReward(normalised_reward, bonus, own, correct_alone))
    return combined


def scored_group(
    group: RolloutGroup,
    evaluated: Sequence[Evaluated],
    rewards: Sequence[Reward],
    *,
    correctness: str,
    texts: tuple[Any, ...] | None = None,
) -> ScoredGroup:
    """The group with its combined rewards, the scores that decide correctness, the rewards' feedback, and what was read off its texts if
    they were read.

    ``evaluated`` are those of ``reward_inputs``: a rollout whose environment failed has none and is not graded.
    """
    given = iter(evaluated)
    found = [Evaluated({}) if rollout.failed else next(given) for rollout in group.rollouts]
    combined = combine([own.breakdown for own in found], rewards, correctness=correctness)
    scores = [
        nan if rollout.failed else _score(own, rewards, correctness)
        for rollout, own in zip(group.rollouts, combined, strict=True)
    ]
    group = with_feedback(group, [own.feedback for own in found])
    return ScoredGroup(group, tuple(combined), tuple(scores), texts)


def _score(own: RolloutReward, rewards: Sequence[Reward], correctness: str) -> float:
    """What decides whether a rollout is correct; NaN where the reward that decides gave None, or without one that decides, all did."""
    names = {r.name for r in rewards}
    if correctness in names:
        return own.reward_breakdown.get(correctness, nan)
    return own.total if names & own.reward_breakdown.keys() or not names else nan


def with_finals(group: RolloutGroup, final_part: FinalPart) -> RolloutGroup:
    """The group with the part after the thinking told apart in each rollout, once for rewards, contexts and reports."""
    return replace(
        group,
        rollouts=tuple(
            replace(rollout, final=final_part(rollout.text)) if rollout.final is None else rollout
            for rollout in group.rollouts
        ),
    )


def with_feedback(group: RolloutGroup, feedback: Sequence[str | None]) -> RolloutGroup:
    """The group with the rewards' feedback by rollout; those without any keep what they have."""
    if not any(feedback):
        return group
    rollouts = (replace(r, feedback=text or r.feedback) for r, text in zip(group.rollouts, feedback, strict=True))
    return replace(group, rollouts=tuple(rollouts))


def reward_inputs(group: RolloutGroup, final_part: FinalPart, steps: int | None = None) -> list[RewardInput]:
    """The inputs of reward functions, in the order of the rollouts; none for a rollout whose environment failed.

    Args:
        group: the rollouts
        final_part: of a completion
        steps: of the run, where it is known
    """
    prompt, seen = group.prompt, max((r.policy_version for r in group.rollouts), default=0)
    return [
        RewardInput(
            id=f"{prompt.id} rollout {i}",
            prompt=prompt.fields.get("prompt", list(prompt.messages)),
            completion=rollout.whole_text,
            final=final_part(rollout.text) if rollout.final is None else rollout.final,
            completion_ids=tuple(chain.from_iterable(segment.sampled_ids for segment in rollout.segments)),
            num_tokens=rollout.num_written,
            finish_reason=rollout.finish_reason,
            answer=prompt.fields.get("answer"),
            ground_truth=prompt.ground_truth,
            trainer_state=None if steps is None else TrainerState(seen, steps),
            environment=None if rollout.outcome is None else _as_mapping(rollout.outcome),
            fields={**prompt.fields, **prompt.raw_columns},
        )
        for i, rollout in enumerate(group.rollouts)
        if not rollout.failed
    ]


def _as_mapping(outcome: EnvironmentOutcome) -> Mapping[str, Any]:
    return {"reward": outcome.reward, "metrics": outcome.metrics, "feedback": outcome.feedback, "turns": outcome.turns}
