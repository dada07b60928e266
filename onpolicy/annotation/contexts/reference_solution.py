"""The dataset's worked solution."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.annotation.contexts.siblings import outcome
from onpolicy.annotation.contexts.template import SOLUTION, replace_question
from onpolicy.types import Message, RolloutGroup


def reference_solution(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    field: str = "solution",
    optional: bool = False,
    template: str = SOLUTION,
) -> tuple[Message, ...] | None:
    """The teacher reads a worked solution (OPSD, arXiv 2601.18734; SDFT, 2601.19897).

    Args:
        field: column of the dataset that holds the solution
        optional: whether a row without a solution has no teacher; otherwise such a row is an error
        template: text with `{question}` and `{solution}`; `{outcome}` is whether this rollout itself is `correct` or `incorrect`,
            `{problem}` the problem without the prompt's wording
    """
    solution = group.prompt.fields.get(field)
    if solution is None and optional:
        return None
    return replace_question(group.prompt, template, solution=solution, outcome=outcome(rewards[index]))
