"""The rollout itself and whether it was right."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.types import Message, RolloutGroup


def revision(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    threshold: float = 1.0,
    right: str = "Your answer is correct. Rephrase your solution.",
    wrong: str = "Your answer is wrong. Find the mistake and solve the problem again.",
) -> tuple[Message, ...]:
    """The teacher reads the problem, the rollout as its own earlier answer, and one sentence on the outcome; no solution is needed.

    The second phase of SD-Zero (arXiv 2604.12002), whose phrases and whose preceding fine-tuning on revisions are its own.

    Args:
        threshold: reward from which a rollout counts as right
        right: said after an answer that was right
        wrong: said after one that was not
    """
    outcome = right if rewards[index] >= threshold else wrong
    answer: Message = {"role": "assistant", "content": group.rollouts[index].text}
    return (*group.prompt.messages, answer, {"role": "user", "content": outcome})
