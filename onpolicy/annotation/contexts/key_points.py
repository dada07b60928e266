"""The main ideas of the solution, without its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from onpolicy.annotation.contexts.template import replace_question
from onpolicy.types import AskModel, ContextCoroutine, Reply, RolloutGroup
from onpolicy.utils.thinking import strip_thinking

QUESTION = (
    "{question}\n\nCorrect solution:\n\n{solution}\n\nName the key points of this solution as a short list: the ideas that it needs "
    "and the results in between. Do not write out the steps."
)
KEY_POINTS = "{question}\n\nKey points of a correct solution:\n\n{key_points}\n\nCorrectly solve the original question."


def key_points(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    field: str | None = None,
    question: str = QUESTION,
    template: str = KEY_POINTS,
) -> ContextCoroutine:
    """What lies between the final answer and the whole solution: about 280 of 530 tokens in arXiv 2609.20612, whose control it is.

    Args:
        field: column of the dataset that holds them; null: the student, shown the solution, names them; what it thinks before is left out
        question: what it is asked; text with `{question}` and any field of the row, as `{solution}`
        template: text with `{question}` and `{key_points}`
    """
    if field is not None:
        return replace_question(group.prompt, template, key_points=group.prompt.fields.get(field))
    (reply,) = cast(tuple[Reply, ...], (yield AskModel(replace_question(group.prompt, question))))
    points = strip_thinking(reply.text, opened=False)  # the steps would be in there
    return replace_question(group.prompt, template, key_points=points) if points.strip() else None
