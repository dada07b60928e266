"""Another rollout of the same problem that succeeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from onpolicy.annotation.contexts.siblings import Choice, Shown, ordered, outcome
from onpolicy.annotation.contexts.template import SOLUTION, replace_question
from onpolicy.rewards.extract import extract_answer
from onpolicy.types import Message, RolloutGroup
from onpolicy.utils.thinking import strip_closed_thinking, strip_thinking


def successful_sibling(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    threshold: float = 1.0,
    choose: Choice = "first",
    keep_thinking: Literal[True, False, "unclosed"] = True,
    context: Shown | None = None,
    template: str = SOLUTION,
) -> tuple[Message, ...] | None:
    """Another rollout of the group whose reward reaches the threshold (SDPO; arXiv 2603.24472, c = s).

    A rollout is never its own demonstration. Without a successful sibling there is no teacher, unless `context` has something to show.

    Args:
        threshold: reward from which a rollout counts as successful
        choose: which of several: the `first`, or a `random` one (RLCSD), the same each time this problem's rollout is annotated
        keep_thinking: show its thinking too (c = s); false: what follows it, so that a sibling whose thinking never closes is not shown;
            `unclosed`: leave out closed thinking alone, as arXiv 2603.24472's code does (c = s without think)
        context: what the teacher reads where no sibling succeeded (AntiSD: the solution); null: nothing, there is no teacher
        template: text with `{question}` and `{solution}`; `{answer}` is the sibling's final answer, the dataset's where it states none,
            `{outcome}` whether this rollout itself is `correct` or `incorrect`, `{problem}` the problem without the prompt's wording
    """
    siblings = [i for i, reward in enumerate(rewards) if i != index and reward >= threshold]
    if keep_thinking is False:
        siblings = [i for i in siblings if strip_thinking(group.rollouts[i].answer_text, opened=False)]
    if not siblings:
        return None if context is None else context(group, index, rewards)
    shown = group.rollouts[ordered(group, index, siblings, choose)[0]]
    text = shown.text
    if keep_thinking == "unclosed":
        text = strip_closed_thinking(text)
    elif not keep_thinking:
        text = strip_thinking(shown.answer_text, opened=False)
    answer = extract_answer(shown.answer_text) or group.prompt.fields.get("answer")
    verdict = outcome(rewards[index], threshold)
    return replace_question(group.prompt, template, solution=text, answer=answer, outcome=verdict)
