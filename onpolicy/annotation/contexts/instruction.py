"""A control: an instruction without privileged information."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.annotation.contexts.template import replace_question
from onpolicy.types import Message, RolloutGroup


def instruction(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    template: str = "{question}\n\nCorrectly solve the original question.",
) -> tuple[Message, ...]:
    """The teacher reads an instruction around the question and no answer; this measures the effect of the wording alone.

    Args:
        template: text with `{question}`
    """
    return replace_question(group.prompt, template)
