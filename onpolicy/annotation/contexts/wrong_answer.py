"""A control: a wrong answer."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.annotation.contexts.template import ANSWER, ContextError, replace_question
from onpolicy.types import Message, RolloutGroup


def wrong_answer(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    offset: int = 1,
    constant: str | None = None,
    field: str = "answer",
    template: str = ANSWER,
) -> tuple[Message, ...]:
    """The teacher reads a wrong answer, presented as confidently as a correct one.

    This separates the effect of the answer from that of its form.

    Args:
        offset: added to an answer that is a whole number
        constant: shown in place of any answer; needed where answers are not whole numbers
        field: column of the dataset that holds the correct answer
        template: text with `{question}` and `{answer}`
    """
    correct = str(group.prompt.fields.get(field)).strip()
    if constant is None:
        try:
            constant = str(int(correct) + offset)
        except ValueError:
            raise ContextError(
                f"prompt {group.prompt.id!r}: cannot make {correct!r} wrong by adding {offset}; give the context's constant"
            ) from None
    if constant == correct:
        raise ContextError(f"prompt {group.prompt.id!r}: the wrong answer {constant!r} is the correct one")
    return replace_question(group.prompt, template, answer=constant)
