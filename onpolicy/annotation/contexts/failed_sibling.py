"""Another rollout of the same problem that failed."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.annotation.contexts.template import FAILED, SOLUTION, replace_question
from onpolicy.types import Message, RolloutGroup


def failed_sibling(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    rank: int = 0,
    disguised: bool = False,
    threshold: float = 1.0,
    template: str = FAILED,
) -> tuple[Message, ...] | None:
    """Another rollout of the group whose reward stays below the threshold; without one there is no teacher.

    Args:
        rank: which of the others that failed: 0 is the first
        disguised: worded as a correct solution, the contrast of RLCSD (arXiv 2606.11709); `template` is not used
        threshold: reward below which a rollout counts as failed
        template: text with `{question}` and `{attempt}`
    """
    failed = [i for i, reward in enumerate(rewards) if i != index and reward < threshold]
    if rank >= len(failed):
        return None
    text = group.rollouts[failed[rank]].text
    return replace_question(group.prompt, SOLUTION if disguised else template, attempt=text, solution=text)
