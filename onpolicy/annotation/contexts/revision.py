"""The rollout itself and whether it was right."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from onpolicy.annotation.contexts.template import continue_turn
from onpolicy.types import Message, RolloutGroup
from onpolicy.utils.thinking_tags import find_tags


def revision(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    threshold: float = 1.0,
    right: str = "Let me rephrase the above solution.",
    wrong: str = "Wait, this response is wrong. Let me correct it.",
) -> tuple[Message, ...] | None:
    """The teacher has written the rollout and one sentence on its outcome, and writes it again in the same turn; no solution is needed.

    The second phase of SD-Zero (arXiv 2604.12002): problem, y, blank line, sentence, blank line, and the y that is scored. Where the
    template opens the thinking, it is opened again, so that y begins both times in the same state. A rollout that was not graded has no
    teacher.

    Args:
        threshold: reward from which a rollout counts as right
        right: said after an answer that was right
        wrong: said after one that was not
    """
    if isnan(rewards[index]):
        return None
    text, outcome = group.rollouts[index].text, right if rewards[index] >= threshold else wrong
    tags, _ = find_tags(text, (), "")
    closes_first = tags.close in text and tags.open not in text.partition(tags.close)[0]
    again = f"{tags.open}\n" if closes_first else ""
    return continue_turn(group.prompt, f"{text}\n\n{outcome}\n\n{again}")
