"""Rollouts with what stands in their texts, for everything that counts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onpolicy.epistemic.text_facts import Split, TextFacts, text_facts
from onpolicy.rewards.uncertainty import prompt_text
from onpolicy.types import Prompt, Rollout, ScoredGroup


@dataclass(frozen=True, kw_only=True)
class MarkedRollout(TextFacts):
    """One rollout, what its text says, and what its step knows about it."""

    prompt: Prompt
    rollout: Rollout
    group: int
    """Index of its group."""
    correct: bool | None
    """None where it was not graded."""
    pass_rate: float
    """Share of its problem's graded rollouts that are correct; NaN without any."""

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


def locate_markers(
    groups: Sequence[ScoredGroup], lexicons: Sequence[str], split: Split, audited: Sequence[str] = ()
) -> list[MarkedRollout]:
    """Every rollout of the groups, in order.

    Args:
        groups: with their scores
        lexicons: whose markers are located
        split: text -> thinking and answer
        audited: those of the lexicons whose use can be audited
    """
    return [
        marked_rollout(
            scored,
            index,
            number,
            text_facts(r, prompt_text(scored.group.prompt.messages), lexicons, split, audited),
        )
        for number, scored in enumerate(groups)
        for index, r in enumerate(scored.group.rollouts)
    ]


def marked_rollout(scored: ScoredGroup, index: int, number: int, facts: TextFacts) -> MarkedRollout:
    """One rollout of a group.

    Args:
        scored: the group
        index: of the rollout in the group
        number: of the group in the step
        facts: of the rollout's text
    """
    return MarkedRollout(
        **vars(facts),
        prompt=scored.group.prompt,
        rollout=scored.group.rollouts[index],
        group=number,
        correct=scored.correct[index] if scored.graded[index] else None,
        pass_rate=scored.pass_rate,
    )
