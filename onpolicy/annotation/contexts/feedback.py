"""What an environment said about an attempt."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.annotation.contexts.template import FEEDBACK, replace_question
from onpolicy.types import Message, RolloutGroup


def feedback(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    field: str = "feedback",
    threshold: float = 1.0,
    template: str = FEEDBACK,
) -> tuple[Message, ...] | None:
    """The teacher reads what the dataset, a reward or an environment says of an attempt that failed (SDPO's rich feedback).

    Args:
        field: column of the dataset that holds the feedback; a row without it has what a reward or an environment said of the rollout, and
            without that no teacher
        threshold: reward from which a rollout counts as successful
        template: text with `{question}` and `{feedback}`
    """
    text = group.prompt.fields.get(field)
    if text is None:
        rollout = group.rollouts[index]
        text = rollout.feedback or (rollout.outcome.feedback if rollout.outcome else "")
    if not text or not rewards[index] < threshold:  # nor for one that was not graded
        return None
    return replace_question(group.prompt, template, feedback=text)
