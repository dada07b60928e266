"""The shortest rollout of the majority: what a group knows without being told."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from onpolicy.annotation.contexts.template import SOLUTION, replace_question
from onpolicy.rewards.equality import by_equality
from onpolicy.rewards.extract import extract_answer
from onpolicy.types import Message, Rollout, RolloutGroup


def majority_sibling(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    agreement: float = 0.5,
    targets: int | None = 1,
    template: str = SOLUTION,
) -> tuple[Message, ...] | None:
    """For the longest rollouts that disagree with the majority's answer, the shortest that agrees; U-OPSD (arXiv 2608.06296).

    No reward and no reference is read. Answers are compared as ``math_answer`` compares them; the most frequent one wins, and ties
    are drawn at random, the same way for all rollouts of the group. A rollout that states no answer or was cut off votes for none
    and has no teacher, but counts in the share. Rollouts of the majority have none either, so that none is its own
    demonstration.

    Args:
        agreement: share of the group that the majority needs; below it no rollout has a teacher
        targets: how many of the rollouts that disagree have a teacher, the longest first; null: all of them
        template: text with `{question}` and `{solution}`
    """
    votes = votes_of(group.rollouts)
    majority = winner(votes, seed=group.prompt.id)
    if majority is None or votes.count(majority) < agreement * len(votes):
        return None
    by_length = sorted(range(len(votes)), key=lambda i: group.rollouts[i].num_sampled)
    against = [i for i in reversed(by_length) if votes[i] not in (None, majority)]
    if index not in against[:targets]:
        return None
    shown = next(i for i in by_length if votes[i] == majority)
    return replace_question(group.prompt, template, solution=group.rollouts[shown].text)


def vote_of(rollout: Rollout) -> str | None:
    """The final answer; None if the rollout states none, or was cut off."""
    return extract_answer(rollout.answer_text) if rollout.finish_reason == "stop" else None


def votes_of(rollouts: Sequence[Rollout]) -> list[str | None]:
    """By rollout, the first of the answers that its own equals."""
    answers = [vote_of(rollout) for rollout in rollouts]
    return [None if first is None else answers[first] for first in by_equality(answers)]


def winner(votes: Sequence[str | None], *, seed: str) -> str | None:
    """The most frequent vote; ties are drawn by ``seed`` and the votes themselves. None where nobody voted."""
    counts = Counter(vote for vote in votes if vote is not None)
    first = sorted(vote for vote, count in counts.items() if count == max(counts.values()))
    return random.Random(f"{seed}/{votes}").choice(first) if first else None
