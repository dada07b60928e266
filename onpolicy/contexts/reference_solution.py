"""The dataset's worked solution."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.contexts.template import SOLUTION, replace_question
from onpolicy.types import Message, RolloutGroup


def reference_solution(
    group: RolloutGroup, index: int, rewards: Sequence[float], *, field: str = "solution", template: str = SOLUTION
) -> tuple[Message, ...]:
    """The teacher reads a worked solution (OPSD, arXiv 2601.18734; SDFT, 2601.19897).

    Args:
        field: column of the dataset that holds the solution
        template: text with `{question}` and `{solution}`
    """
    return replace_question(group.prompt, template, solution=group.prompt.fields.get(field))
