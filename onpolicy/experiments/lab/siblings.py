"""The lab's "c = s without think": the part of a sibling's answer after its search, which has no thinking tags."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.annotation.contexts.template import replace_question
from onpolicy.experiments.lab.problem import ANSWER, HINT, SO
from onpolicy.types import Message, RolloutGroup

TEMPLATE = f"{{question}} {HINT} {{solution}}"


def sibling_answer(
    group: RolloutGroup, index: int, rewards: Sequence[float], *, threshold: float = 0.5, template: str = TEMPLATE
) -> tuple[Message, ...] | None:
    """The answer of the first other rollout that succeeded, without its search (arXiv 2603.24472).

    Args:
        threshold: reward from which a rollout counts as successful
        template: text with `{question}` and `{solution}`
    """
    siblings = (i for i, reward in enumerate(rewards) if i != index and reward >= threshold)
    chosen = next(siblings, None)
    if chosen is None:
        return None
    _, answer, stated = group.rollouts[chosen].text.rpartition(f"{SO} {ANSWER}")
    return replace_question(group.prompt, template, solution=answer + stated) if answer else None
