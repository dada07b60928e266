"""What a group shows itself: the vote, who is shown to whom, and when nobody is.

U-OPSD (arXiv 2608.06296). The answer of each rollout below is written in a box, its length is its number of tokens.
"""

from __future__ import annotations

from typing import Any

import pytest

from onpolicy.annotation.contexts.majority_sibling import majority_sibling, votes_of, winner
from onpolicy.types import Prompt, Rollout, RolloutGroup

PROMPT = Prompt(id="p", messages=({"role": "user", "content": "Q"},), fields={"answer": "never read"})


def rollout(answer: str | None, length: int, finish: Any = "stop") -> Rollout:
    text = f"{length} tokens" + ("" if answer is None else f" so \\boxed{{{answer}}}")
    return Rollout(
        prompt_ids=(5,), completion_ids=(6,) * length, rollout_logprobs=(-1.0,) * length, text=text, finish_reason=finish,
        policy_version=0,
    )  # fmt: skip


def shown(*rollouts: Rollout, **options: Any) -> list[str | None]:
    """What the teacher of each rollout reads after the heading, shortened to the length that it names."""
    group, found = RolloutGroup(prompt=PROMPT, rollouts=rollouts), []
    for i in range(len(rollouts)):
        messages = majority_sibling(group, i, [float("nan")] * len(rollouts), **options)
        found.append(None if messages is None else messages[-1]["content"].partition("solution:\n\n")[2].split()[0])
    return found


def test_the_shortest_of_the_majority_teaches_the_longest_that_disagrees() -> None:
    group = [rollout("4", 9), rollout("5", 3), rollout("4", 7), rollout("6", 8), rollout("4", 8), rollout("5", 5)]
    assert shown(*group) == [None, None, None, "7", None, None]
    assert shown(*group, targets=2) == [None, None, None, "7", None, "7"]
    assert shown(*group, targets=None) == [None, "7", None, "7", None, "7"]


def test_below_the_agreement_nobody_is_shown() -> None:
    group = [rollout("4", 1), rollout("4", 2), rollout("5", 3), rollout("6", 4), rollout("7", 5)]
    assert shown(*group) == [None] * 5, "two of five"
    assert shown(*group, agreement=0.4) == [None, None, None, None, "1"]
    assert shown(rollout("1", 1), rollout("2", 2), rollout("3", 3)) == [None] * 3, "all different"
    assert shown(rollout("1", 1), rollout("1", 2)) == [None] * 2, "all agree"
    assert shown(rollout("1", 1)) == [None] and shown(rollout(None, 1), rollout(None, 2)) == [None] * 2


def test_without_an_answer_a_rollout_has_no_vote_but_counts() -> None:
    silent, cut = rollout(None, 20), rollout("5", 30, "length")
    assert votes_of([silent, cut, rollout("", 1)]) == [None] * 3
    assert shown(rollout("4", 2), rollout("5", 9), rollout("4", 3), silent) == [None, "2", None, None]
    assert shown(rollout("4", 2), rollout("5", 9), rollout("4", 3), silent, cut) == [None] * 5, "two of five"


def test_answers_are_compared_as_a_grader_compares_them() -> None:
    half = [rollout(text, length) for text, length in ((r"\frac12", 2), ("1/2", 3), ("0.5", 4), ("2", 5), ("2.0", 6))]
    assert votes_of(half) == [r"\frac12"] * 3 + ["2"] * 2
    assert shown(*half) == [None, None, None, None, "2"]
    assert votes_of([rollout("BAC", 1), rollout("ABC", 2)]) == ["BAC", "ABC"]


def test_a_tie_is_drawn_once_for_the_whole_group() -> None:
    votes = ["4", "5", "5", "4", None]
    drawn = [winner(votes, seed=f"problem {i}") for i in range(200)]
    assert 70 < drawn.count("4") < 130 and drawn.count("4") + drawn.count("5") == 200
    assert [winner(votes, seed="problem 3")] * 3 == [drawn[3]] * 3
    group = [rollout("4", 2), rollout("5", 3), rollout("4", 4), rollout("5", 5)]
    first = [i for i, text in enumerate(shown(*group)) if text is not None]
    assert len(first) == 1, "one side is the majority for all"


@pytest.mark.parametrize("field", ["answer", "solution"])
def test_nothing_of_the_dataset_is_read(field: str) -> None:
    group = RolloutGroup(
        prompt=Prompt(id="p", messages=PROMPT.messages, fields={field: "secret"}),
        rollouts=(rollout("4", 2), rollout("4", 3), rollout("5", 4)),
    )
    messages = majority_sibling(group, 2, [0.0, 0.0, 1.0])
    assert messages is not None and "secret" not in messages[-1]["content"] and "2 tokens" in messages[-1]["content"]
