"""Parts of a completion, marked for the token weight ``spans``: ``(group, index, rewards) -> [(start, end), ...]`` in its text.

Like a context, a span finder may be a generator function and ask the model (``onpolicy.types.ContextCoroutine``).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Literal

from onpolicy.annotation.contexts.siblings import outcome
from onpolicy.annotation.contexts.template import replace_question
from onpolicy.rewards import lexicon as lexicons
from onpolicy.rewards.uncertainty import prompt_text
from onpolicy.types import AskModel, Reply, RolloutGroup

Spans = list[tuple[int, int]]

KEY_STEPS = (
    "{question}\n\nAn attempt at this problem, which is {outcome}:\n\n{attempt}\n\nCopy word for word the few sentences that "
    "decided this outcome, one a line, and write nothing else."
)


def pattern(group: RolloutGroup, index: int, rewards: Sequence[float], *, regex: str) -> Spans:
    """Every match of a regular expression.

    Args:
        regex: Python's syntax
    """
    return [match.span() for match in re.finditer(regex, group.rollouts[index].text)]


def markers(group: RolloutGroup, index: int, rewards: Sequence[float], *, lexicon: str = "self_doubt") -> Spans:
    """Every marker of a lexicon, but for those in mathematics, code or quotations of the prompt; the `neutral` words are the control.

    Args:
        lexicon: whose markers
    """
    return lexicons.find(group.rollouts[index].text, lexicon, prompt=prompt_text(group.prompt.messages))


def quoted_by_model(
    group: RolloutGroup,
    index: int,
    rewards: Sequence[float],
    *,
    of: Literal["all", "correct", "failures"] = "all",
    share: float = 0.25,
    threshold: float = 0.5,
    question: str = KEY_STEPS,
) -> Generator[AskModel, tuple[Reply, ...], Spans]:
    """Sentences that the model, asked which of them decided the outcome, quotes word for word: key or error spans.

    The annotation of TRACE (arXiv 2605.10194), which has a stronger model for it, with its limit of a quarter of the text.

    Args:
        of: which rollouts are annotated
        share: longest part of the text that is marked; later quotes are left out
        threshold: reward from which a rollout counts as correct
        question: text with `{question}`, `{attempt}` and `{outcome}`
    """
    if not {"all": True, "correct": rewards[index] >= threshold, "failures": rewards[index] < threshold}[of]:
        return []
    text, verdict = group.rollouts[index].text, outcome(rewards[index], threshold).replace("incorrect", "wrong")
    asked = replace_question(group.prompt, question, attempt=text, outcome=verdict)
    (reply,) = yield AskModel(asked)
    found: Spans = []
    for line in reply.text.splitlines():
        quote = line.strip().strip("-*\"'` ")
        start = text.find(quote) if len(quote) >= 4 else -1
        if start >= 0 and sum(e - s for s, e in found) + len(quote) <= share * len(text):
            found.append((start, start + len(quote)))
    return found
