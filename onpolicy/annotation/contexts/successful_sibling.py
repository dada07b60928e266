"""Another rollout of the same problem that succeeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from onpolicy.annotation.contexts.template import SOLUTION, replace_question
from onpolicy.types import Message, RolloutGroup
from onpolicy.utils.thinking import strip_closed_thinking, strip_thinking


def successful_sibling(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    threshold: float = 1.0,
    keep_thinking: Literal[True, False, "unclosed"] = True,
    template: str = SOLUTION,
) -> tuple[Message, ...] | None:
    """The first other rollout of the group whose reward reaches the threshold (SDPO; arXiv 2603.24472, c = s).

    A rollout is never its own demonstration. Without a successful sibling there is no teacher.

    Args:
        threshold: reward from which a rollout counts as successful
        keep_thinking: show its thinking too (c = s); false: what follows it, nothing of a text whose thinking never closes;
            `unclosed`: leave out closed thinking alone, as arXiv 2603.24472's code does (c = s without think)
        template: text with `{question}` and `{solution}`
    """
    siblings = (i for i, reward in enumerate(rewards) if i != index and reward >= threshold)
    chosen = next(siblings, None)
    if chosen is None:
        return None
    text = group.rollouts[chosen].text
    if keep_thinking == "unclosed":
        text = strip_closed_thinking(text)
    elif not keep_thinking:
        text = strip_thinking(text, opened=False)
    return replace_question(group.prompt, template, solution=text)
