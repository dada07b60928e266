"""Another rollout of the same problem that failed."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.contexts.template import FAILED, replace_question
from onpolicy.types import Message, RolloutGroup


def failed_sibling(
    group: RolloutGroup, index: int, rewards: Sequence[float], *, threshold: float = 1.0, template: str = FAILED
) -> tuple[Message, ...] | None:
    """The first other rollout of the group whose reward stays below the threshold: the contrast of RLCSD (arXiv 2606.11709).

    Without a failed sibling there is no teacher.

    Args:
        threshold: reward below which a rollout counts as failed
        template: text with `{question}` and `{attempt}`
    """
    chosen = next((i for i, reward in enumerate(rewards) if i != index and reward < threshold), None)
    if chosen is None:
        return None
    return replace_question(group.prompt, template, attempt=group.rollouts[chosen].text)
