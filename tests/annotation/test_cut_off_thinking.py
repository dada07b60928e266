"""A rollout that is cut off inside the thinking that its template opened: for no reader is anything in it an answer."""

from __future__ import annotations

from typing import Any

import pytest

from onpolicy.annotation.contexts.failed_sibling import failed_sibling
from onpolicy.annotation.contexts.key_points import key_points
from onpolicy.annotation.contexts.majority_sibling import votes_of
from onpolicy.annotation.contexts.successful_sibling import successful_sibling
from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.epistemic.calibration import scoreboard
from onpolicy.epistemic.marked import locate_markers
from onpolicy.rewards.answer import math_answer
from onpolicy.types import Prompt, Reply, Rollout, RolloutGroup, ScoredGroup
from onpolicy.utils.thinking import split_thinking, strip_thinking

PROMPT = Prompt(id="p", messages=({"role": "user", "content": "Q"},), fields={"answer": "42"})
CUT = r"17+25 = \boxed{42}? But wait, let me check: the answer is 42"
ENDED = r"17+25 = \boxed{41}? No.</think>The answer is \boxed{42}."


def opened(text: str) -> str:
    """The part after the thinking, as a renderer tells it whose template opens the thinking."""
    return strip_thinking(text, opened=True)


def scored(*texts: str) -> ScoredGroup:
    rollouts = tuple(
        Rollout(
            prompt_ids=(1,), completion_ids=(2,) * 9, rollout_logprobs=(-1.0,) * 9, text=text, finish_reason="stop", policy_version=0
        )
        for text in texts
    )  # fmt: skip
    scorer = Scorer([Reward("math_answer", 1.0, math_answer)], opened, "math_answer")
    return scorer.score([RolloutGroup(prompt=PROMPT, rollouts=rollouts)])[0]


def test_it_earns_nothing_and_is_nobodys_demonstration() -> None:
    found = scored(CUT, ENDED, "x</think>no")
    assert found.scores == (0.0, 1.0, 0.0)
    shown = successful_sibling(found.group, 0, found.scores, keep_thinking=False, template="{solution}|{answer}")
    assert shown is not None and shown[-1]["content"] == r"The answer is \boxed{42}.|42"
    assert successful_sibling(found.group, 1, (1.0, 1.0, 0.0), keep_thinking=False) is None, (
        "whatever a generous reward said"
    )
    generous = successful_sibling(found.group, 2, (1.0, 1.0, 0.0), keep_thinking=False, template="{solution}")
    assert generous is not None and generous[-1]["content"] == r"The answer is \boxed{42}."


def test_it_states_no_answer() -> None:
    found = scored(CUT, ENDED, ENDED)
    assert votes_of(found.group.rollouts) == [None, "42", "42"]
    shown = failed_sibling(found.group, 1, found.scores, template="{attempt} {answer}")
    assert shown is None, "a template with {answer} leaves out what states none"
    rows = locate_markers([found], ["self_doubt"], lambda text: split_thinking(text, opened=True))
    assert scoreboard(rows, "self_doubt")["calibration/agreement/share"] == pytest.approx(2 / 3)


def test_key_points_are_what_follows_the_thinking() -> None:
    call: Any = key_points(scored(ENDED).group, 0, (1.0,), question="{question}", template="{key_points}")
    next(call)
    for final, content in (("- add", "- add"), ("", None)):
        with pytest.raises(StopIteration) as stopped:
            call.send((Reply(f"thinking</think>{final}", 0.0, final),))
        messages = stopped.value.value
        assert (messages and messages[-1]["content"]) == content
        call = key_points(scored(ENDED).group, 0, (1.0,), question="{question}", template="{key_points}")
        next(call)
