"""The beginning of the worked solution."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onpolicy.annotation.contexts.template import SOLUTION, ContextError, replace_question
from onpolicy.types import Message, RolloutGroup


def partial(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    share: float = 0.5,
    field: str = "solution",
    template: str = SOLUTION,
) -> tuple[Message, ...]:
    """The teacher reads the first lines of the worked solution (partial exposure).

    Args:
        share: fraction of the solution's lines that is shown, 0 to 1; the number of lines is rounded up
        field: column of the dataset that holds the solution
        template: text with `{question}` and `{solution}`
    """
    if not 0.0 <= share <= 1.0:
        raise ContextError(f"contexts: partial's share must lie between 0 and 1, got {share}")
    solution = group.prompt.fields.get(field)
    if solution is not None:
        lines = solution.splitlines()
        solution = "\n".join(lines[: math.ceil(share * len(lines))])
    return replace_question(group.prompt, template, solution=solution)
