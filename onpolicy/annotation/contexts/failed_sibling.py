"""Another rollout of the same problem that failed."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.annotation.contexts.siblings import Choice, ordered
from onpolicy.annotation.contexts.template import FAILED, SOLUTION, replace_question
from onpolicy.rewards.extract import extract_answer
from onpolicy.types import Message, RolloutGroup


def failed_sibling(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    rank: int = 0,
    choose: Choice = "first",
    disguised: bool = False,
    threshold: float = 1.0,
    template: str | None = None,
) -> tuple[Message, ...] | None:
    """Another rollout of the group whose reward stays below the threshold; without one there is no teacher.

    Args:
        rank: which of the others that failed, from 0; contexts of different ranks show different rollouts
        choose: how they are ordered: as sampled (`first`), or in a `random` order, the same each time this problem's rollout is annotated
        disguised: worded as a correct solution, the contrast of RLCSD (arXiv 2606.11709), which needs the template of the correct one
        threshold: reward below which a rollout counts as failed
        template: text with `{question}` and `{attempt}` or `{solution}`, which both stand for the rollout; `{answer}` is its final
            answer, and where a template names it, rollouts that state none are not shown. null: one that calls it wrong, or, if
            `disguised`, that of `successful_sibling`
    """
    words = template or (SOLUTION if disguised else FAILED)
    failed = [i for i, reward in enumerate(rewards) if i != index and reward < threshold]
    answers = {i: extract_answer(group.rollouts[i].answer_text) for i in failed}
    if "{answer}" in words:
        failed = [i for i in failed if answers[i] is not None]
    if rank >= len(failed):
        return None
    chosen = ordered(group, index, failed, choose)[rank]
    text = group.rollouts[chosen].text
    return replace_question(group.prompt, words, attempt=text, solution=text, answer=answers[chosen])
