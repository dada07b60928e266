"""A control: the worked solution of another problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from onpolicy.annotation.contexts.template import replace_question
from onpolicy.types import ContextCoroutine, Prompt, RolloutGroup, SampleProblem

OTHER = (
    "Here is another problem:\n\n{other_question}\n\nIts correct solution:\n\n{other_solution}"
    "\n\nNow the original question:\n\n{question}\n\nCorrectly solve the original question."
)


def other_problem(
    group: RolloutGroup, index: int, rewards: Sequence[float], *, field: str = "solution", template: str = OTHER
) -> ContextCoroutine:
    """The teacher reads a solved example that does not contain the answer; this measures the effect of a solution's form alone.

    OP2SD (arXiv 2608.09228) finds this competitive with the problem's own solution.

    Args:
        field: column of the dataset that holds the solution
        template: text with `{question}`, `{other_question}` and `{other_solution}`
    """
    other = cast(Prompt, (yield SampleProblem()))
    question = next(m["content"] for m in reversed(other.messages) if m["role"] == "user")
    return replace_question(group.prompt, template, other_question=question, other_solution=other.fields.get(field))
