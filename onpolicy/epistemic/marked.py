"""Rollouts with their markers found once, for everything that counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onpolicy.rewards.extract import stated_answers
from onpolicy.rewards.lexicon import merged, occurrences
from onpolicy.rewards.uncertainty import prompt_text
from onpolicy.types import Prompt, Rollout, ScoredGroup
from onpolicy.utils.thinking import ThinkingSplit

Split = Callable[[str], ThinkingSplit]


@dataclass(frozen=True)
class MarkedRollout:
    """One rollout and where its markers stand."""

    prompt: Prompt
    rollout: Rollout
    group: int
    """Index of its group."""
    correct: bool | None
    """None where it was not graded."""
    pass_rate: float
    """Share of its problem's graded rollouts that are correct; NaN without any."""
    answer_at: int
    """Character from which on the text is the answer; before it is thinking."""
    final_at: int
    """Character at which the last stated answer begins; the text's length where none is stated."""
    spans: Mapping[str, Sequence[tuple[int, int]]]
    """Lexicon -> where each marker stands, neighbours as one."""
    words: Mapping[str, Counter[str]]
    """Lexicon -> each of its markers by itself."""

    @property
    def text(self) -> str:
        return self.rollout.text

    @property
    def tokens(self) -> int:
        return self.rollout.num_sampled

    def rate(self, lexicon: str) -> float:
        """Markers per 1,000 tokens."""
        return 1000.0 * len(self.spans[lexicon]) / max(self.tokens, 1)

    def share(self, start: int, end: int) -> float:
        """Tokens of a part of the text, as its share of the characters."""
        return self.tokens * (end - start) / max(len(self.text), 1)


def locate_markers(groups: Sequence[ScoredGroup], lexicons: Sequence[str], split: Split) -> list[MarkedRollout]:
    """Every rollout of the groups, in order."""
    return [
        locate_in_rollout(scored, index, number, lexicons, split)
        for number, scored in enumerate(groups)
        for index in range(len(scored.scores))
    ]


def locate_in_rollout(
    scored: ScoredGroup, index: int, number: int, lexicons: Sequence[str], split: Split
) -> MarkedRollout:
    """One rollout of a group.

    Args:
        scored: the group
        index: of the rollout in the group
        number: of the group in the step
        lexicons: whose markers are located
        split: text -> thinking and answer
    """
    prompt, rollout = scored.group.prompt, scored.group.rollouts[index]
    text, question = rollout.text, prompt_text(list(prompt.messages))
    found = {name: occurrences(text, name, prompt=question) for name in lexicons}
    stated = stated_answers(text)
    return MarkedRollout(
        prompt=prompt,
        rollout=rollout,
        group=number,
        correct=scored.correct[index] if scored.graded[index] else None,
        pass_rate=scored.pass_rate,
        answer_at=len(text) - len(split(text).answer),
        final_at=stated[-1][0] if stated else len(text),
        spans={name: merged([(a, b) for a, b, _ in f], text) for name, f in found.items()},
        words={name: Counter(word for _, _, word in f) for name, f in found.items()},
    )
