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
    """The model, shown the solution, says where this very rollout goes wrong; a rollout that succeeded needs no critique.

    The step-aligned feedback of arXiv 2606.11173, which moves only the tokens where the reasoning fails; its critic is
    frozen, here it is the current student.

    Args:
        threshold: reward from which a rollout counts as successful
        question: what the critic is asked; text with `{question}`, `{attempt}` and any field of the row, as `{solution}`
        template: what the teacher reads; text with `{question}` and `{critique}`
    """
    if rewards[index] >= threshold:
        return None
    asked = replace_question(group.prompt, question, attempt=group.rollouts[index].text)
    (reply,) = cast(tuple[Reply, ...], (yield AskModel(asked)))
    return replace_question(group.prompt, template, critique=reply.text)
