"""A reward of None: the rollout was not graded. It is in no statistic of its group, has no advantage, and is neither correct nor wrong.

1. credit and bonuses; 2. routes; 3. contexts, spans, privileged rollouts; 4. metrics and telemetry; 5. with verl's and TRL's shapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from onpolicy.annotation import routes
from onpolicy.annotation.annotate import advantages
from onpolicy.annotation.contexts.critique import critique
from onpolicy.annotation.contexts.failed_sibling import failed_sibling
from onpolicy.annotation.contexts.feedback import feedback
from onpolicy.annotation.contexts.reference_solution import reference_solution
from onpolicy.annotation.contexts.revision import revision
from onpolicy.annotation.contexts.successful_sibling import successful_sibling
from onpolicy.annotation.credit import group_mean, group_std, leave_one_out
from onpolicy.annotation.scoring import Reward, Scorer
from onpolicy.annotation.spans import quoted_by_model
from onpolicy.epistemic.audit import audit
from onpolicy.epistemic.calibration import scoreboard
from onpolicy.epistemic.marked import locate_markers
from onpolicy.epistemic.text import marker_rates
from onpolicy.run.log import sample_row
from onpolicy.types import ScoredGroup
from onpolicy.utils.thinking import split_thinking
from tests.annotation.test_queries import RENDERER, annotate, group

SAYS = {"good": 1.0, "bad": -1.0}


def grade(completion: str) -> float | None:
    """None for a text that says neither."""
    return SAYS.get(completion.split()[0])


FORMAT = Reward("format", 0.5, lambda completion: 1.0, bonus=True)
REWARDS = [Reward("grade", 1.0, grade), FORMAT]


def scored(*texts: str, rewards: Sequence[Reward] = REWARDS, correctness: str = "grade") -> ScoredGroup:
    (found,) = Scorer(rewards, str, correctness).score([group(*texts)])
    return found


@pytest.mark.parametrize("credit", [group_mean, group_std, leave_one_out, partial(group_std, epsilon=1e-4)])
def test_statistics_are_those_of_the_graded_rollouts(credit: Any) -> None:
    without = advantages(scored("good", "bad", "bad"), credit)
    assert advantages(scored("good", "?", "bad", "? again", "bad"), credit) == [
        without[0], 0.0, without[1], 0.0, without[2],
    ]  # fmt: skip
    assert advantages(scored("bad", "?", "bad"), credit) == [0.0] * 3, "None is not 0, which would be better than -1"
    assert advantages(scored("?", "? again"), credit) == [0.0] * 2
    assert advantages(scored("good", "?"), credit) == [0.0] * 2


def test_bonuses_are_centred_on_the_graded_rollouts() -> None:
    length = Reward("length", 1.0, lambda num_tokens: float(num_tokens), bonus=True)
    texts = ("good", "bad and", "? and so on for long", "bad")
    found = advantages(scored(*texts, rewards=[REWARDS[0], length]), group_mean)
    expected = advantages(scored(*(t for t in texts if t[0] != "?"), rewards=[REWARDS[0], length]), group_mean)
    assert found == [*expected[:2], 0.0, expected[2]] and sum(found) == pytest.approx(0.0)


def test_neither_correct_nor_wrong_whatever_else_it_earned() -> None:
    found = scored("good", "?", "bad")
    assert found.correct == (True, False, False) and found.graded == (True, False, True)
    assert found.pass_rate == 0.5 and found.mixed and not scored("good", "?").mixed and not scored("bad", "?").mixed
    assert math.isnan(scored("?").pass_rate)
    only = scored("good", "?", rewards=[REWARDS[0]], correctness="")
    assert only.scores[0] == 1.0 and not only.graded[1], "without one that decides: no reward applied"
    nothing = scored("good", "?", rewards=[], correctness="")
    assert nothing.scores == (0.0, 0.0), "a run without rewards grades nothing down"
    when = [
        REWARDS[0],
        *(Reward(f"if {w}", 1.0, lambda completion: 1.0, bonus=True, when=w) for w in ("correct", "wrong")),
    ]
    given = [r.reward_breakdown for r in scored("good", "?", "bad", rewards=when).rewards]
    assert [(g["if correct"], g["if wrong"]) for g in given] == [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)]


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (routes.correct, [1, 0, 0, 0]),
        (routes.failures, [0, 0, 1, 1]),
        (routes.mixed, [1, 1, 1, 1]),
        (routes.frontier, [8 / 9] * 4),
        (routes.zero_variance, [0, 0, 0, 0]),
        (routes.above_average, [1, 0, 0, 0]),
        (routes.not_above_average, [0, 0, 1, 1]),
    ],
)
def test_routes(route: Any, expected: list[float]) -> None:
    scores = scored("good", "?", "bad", "bad").scores
    assert [route(scores, i) for i in range(4)] == pytest.approx(expected)


def test_routes_of_groups_in_which_graded_rollouts_agree_or_are_missing() -> None:
    for texts in (("bad", "?", "bad"), ("?", "?")):
        scores = scored(*texts).scores
        assert routes.mixed(scores, 0) == 0.0 and routes.frontier(scores, 0) == 0.0
        assert routes.zero_variance(scores, 0) == 1.0 and routes.above_average(scores, 1) == 0.0


def test_contexts_show_no_such_rollout_as_a_solution_or_as_a_failure() -> None:
    found = scored("? format is fine", "bad", "? too")
    for context in (successful_sibling, partial(failed_sibling, rank=1)):
        assert all(context(found.group, i, found.scores) is None for i in range(3))
    shown = failed_sibling(found.group, 0, found.scores)
    assert shown is not None and "bad" in shown[0]["content"]
    assert failed_sibling(found.group, 1, found.scores) is None
    for about_wrong in (critique, partial(feedback, field="solution"), revision):
        result: Any = about_wrong(found.group, 0, found.scores)  # type: ignore[operator]
        assert result is None or next(result, None) is None
    solution = reference_solution(found.group, 0, found.scores, template="{question} {outcome}")
    assert solution is not None and solution[0]["content"].endswith("not graded")
    for of in ("correct", "failures"):
        with pytest.raises(StopIteration) as ended:
            next(quoted_by_model(found.group, 0, found.scores, of=of))  # type: ignore[arg-type]
        assert ended.value.value == []


def test_metrics_are_of_graded_rollouts_and_say_how_many_were_not() -> None:
    examples, facts = annotate([group("good", "?", "bad"), group("?", "?", "?", name="q")], rewards=REWARDS)
    assert [e.reward for e in examples] == [1.5, None, -0.5, None, None, None]
    assert facts["reward/mean"] == 0.5 and facts["reward/grade"] == 0.0 and facts["group/pass_rate"] == 0.5
    assert facts["rollout/not_graded"] == pytest.approx(4 / 6) and facts["group/any_correct"] == 0.5
    row = json.loads(json.dumps(sample_row(examples[1], RENDERER), allow_nan=False))
    assert row["reward"] is None and row["advantage"] == 0.0
    _, none = annotate([group("?", "?")], rewards=REWARDS)
    assert "reward/mean" not in none and "group/pass_rate" not in none and none["rollout/not_graded"] == 1.0
    assert not [name for name, value in none.items() if math.isnan(value)]


def test_telemetry_counts_its_markers_and_not_its_outcome() -> None:
    texts = ("good wait <confidence>0.9</confidence>", "? wait <confidence>0.9</confidence>", "bad then so")
    split = partial(split_thinking, opened=False)
    marked = locate_markers([scored(*texts)], ["self_doubt"], split, ["self_doubt"])
    graded = locate_markers([scored(texts[0], texts[2])], ["self_doubt"], split, ["self_doubt"])
    assert [m.correct for m in marked] == [True, None, False]
    for name in ("precision", "recall"):
        key = f"audit/self_doubt/{name}"
        assert audit(marked, "self_doubt")[key] == audit(graded, "self_doubt")[key]
    board = scoreboard(marked, "self_doubt")
    assert board["calibration/stated/brier"] == pytest.approx(0.01) and board["calibration/no_hedging/auroc"] == 0.0
    rates = marker_rates(marked, ["self_doubt"])
    assert rates["epistemic/self_doubt/count"] == pytest.approx(2 / 3)
    assert not [name for name, value in rates.items() if math.isnan(value)]
    audit(locate_markers([scored("? wait"), scored("?")], ["self_doubt"], split, ["self_doubt"]), "self_doubt")
