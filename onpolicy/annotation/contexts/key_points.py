"""The main ideas of the solution, without its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from onpolicy.annotation.contexts.template import replace_question
from onpolicy.types import AskModel, ContextCoroutine, Reply, RolloutGroup

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
    """The teacher reads the key points: more than the final answer, less than the solution.

    arXiv 2609.20612 uses this as a control; there, key points take about 280 of the 530 tokens of a solution.

    Args:
        field: column of the dataset that holds them; with null the student reads the solution and names them, and its thinking is removed
        question: prompt of the student; text with `{question}` and any field of the row, as `{solution}`
        template: text with `{question}` and `{key_points}`
    """
    if field is not None:
        return replace_question(group.prompt, template, key_points=group.prompt.fields.get(field))
    (reply,) = cast(tuple[Reply, ...], (yield AskModel(replace_question(group.prompt, question))))
    points = reply.final  # the thinking would repeat the steps
    return replace_question(group.prompt, template, key_points=points) if points.strip() else None
