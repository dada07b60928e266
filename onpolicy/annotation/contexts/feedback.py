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
    """The teacher reads what a reward, an environment or the dataset said of an attempt that failed (SDPO's rich feedback).

    Args:
        field: column of the dataset that holds the feedback where nothing was said of the rollout; without either there is no teacher
        threshold: reward from which a rollout counts as successful
        template: text with `{question}` and `{feedback}`
    """
    rollout = group.rollouts[index]
    said = rollout.feedback or (rollout.outcome.feedback if rollout.outcome else "")
    text = said or group.prompt.fields.get(field)
    if text is None or not rewards[index] < threshold:  # nor for one that was not graded
        return None
    return replace_question(group.prompt, template, feedback=text)
