"""The final answer alone."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.annotation.contexts.template import ANSWER, replace_question
from onpolicy.types import Message, RolloutGroup


def final_answer(
    group: RolloutGroup, index: int, rewards: Sequence[float], *, field: str = "answer", template: str = ANSWER
) -> tuple[Message, ...]:
    """The teacher reads the final answer without its derivation.

    Args:
        field: column of the dataset that holds the answer
        template: text with `{question}` and `{answer}`
    """
    return replace_question(group.prompt, template, answer=group.prompt.fields.get(field))
