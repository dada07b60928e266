"""The worked solution without its thinking."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.annotation.contexts.template import SOLUTION, replace_question
from onpolicy.types import Message, RolloutGroup
from onpolicy.utils.thinking import strip_thinking


def without_thinking(
    group: RolloutGroup, index: int, rewards: Sequence[float], *, field: str = "solution", template: str = SOLUTION
) -> tuple[Message, ...]:
    """The teacher reads the part of the solution that follows the thinking (arXiv 2603.24472, section 3, setting 3).

    Args:
        field: column of the dataset that holds the solution, thinking included
        template: text with `{question}` and `{solution}`
    """
    solution = group.prompt.fields.get(field)
    return replace_question(
        group.prompt, template, solution=None if solution is None else strip_thinking(solution, opened=False)
    )
