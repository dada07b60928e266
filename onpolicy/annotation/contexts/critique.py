"""The model's own critique of the rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from onpolicy.annotation.contexts.template import replace_question
from onpolicy.types import AskModel, ContextCoroutine, Reply, RolloutGroup

QUESTION = (
    "{question}\n\nCorrect solution:\n\n{solution}\n\nAn attempt at this problem:\n\n{attempt}"
    "\n\nGo through the attempt step by step and say where it first goes wrong and why. Do not solve the problem."
)
CRITIQUE = (
    "{question}\n\nThe following is a critique of your earlier attempt:\n\n{critique}"
    "\n\nCorrectly solve the original question."
)


def critique(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    threshold: float = 1.0,
    question: str = QUESTION,
    template: str = CRITIQUE,
) -> ContextCoroutine:
    """The current student reads the solution and says where this rollout goes wrong; a rollout that succeeded gets no critique.

    This is the step-aligned feedback of arXiv 2606.11173, which changes only the tokens where the reasoning fails. Its critic is
    frozen; here the critic is the current student.

    Args:
        threshold: reward from which a rollout counts as successful
        question: prompt of the critic; text with `{question}`, `{attempt}` and any field of the row, as `{solution}`
        template: prompt of the teacher; text with `{question}` and `{critique}`
    """
    if not rewards[index] < threshold:  # nor one that was not graded
        return None
    asked = replace_question(group.prompt, question, attempt=group.rollouts[index].text)
    (reply,) = cast(tuple[Reply, ...], (yield AskModel(asked)))
    return replace_question(group.prompt, template, critique=reply.text)
