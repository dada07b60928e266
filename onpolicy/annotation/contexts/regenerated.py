"""The model's own answer, written while it could see the solution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from onpolicy.annotation.contexts.reference_solution import reference_solution
from onpolicy.annotation.contexts.siblings import Shown
from onpolicy.annotation.contexts.template import SOLUTION, replace_question
from onpolicy.types import AskModel, ContextCoroutine, Reply, RolloutGroup


def regenerated(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    context: Shown = reference_solution,
    samples: int = 1,
    threshold: float = 0.5,
    template: str = SOLUTION,
) -> ContextCoroutine:
    """The model answers under another context; the teacher reads its first correct answer, or its first answer where none is correct.

    This is setting 4 of arXiv 2603.24472, section 3.

    Args:
        context: what the model sees while it answers
        samples: answers per problem
        threshold: reward from which an answer counts as correct
        template: text with `{question}` and `{solution}`
    """
    shown = context(group, index, rewards)
    if shown is None:
        return None
    replies = cast(tuple[Reply, ...], (yield AskModel(shown, samples)))
    chosen = next((reply for reply in replies if reply.score >= threshold), replies[0])
    return replace_question(group.prompt, template, solution=chosen.text)
