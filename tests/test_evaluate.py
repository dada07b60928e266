"""Measuring: pass@k against counting, maj@k by hand, intervals, and an evaluation of known answers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from onpolicy.evaluate import Evaluator, maj_at_k, pass_at_k
from onpolicy.intervals import interval
from onpolicy.room import Room
from onpolicy.sampling import Sampling
from onpolicy.scoring import Reward
from onpolicy.types import Prompt, Rollout, RolloutGroup
from rewards.answer import math_answer
from rewards.extract import extract_answer


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (4, 0, 2), (4, 4, 2), (6, 1, 6)])
def test_pass_at_k_equals_counting_subsets(n: int, c: int, k: int) -> None:
    outcomes = [True] * c + [False] * (n - c)
    assert pass_at_k(n, c, k) == pytest.approx(fmean(any(s) for s in itertools.combinations(outcomes, k)))


def test_impossible_counts_are_refused() -> None:
    for n, c, k in ((3, 4, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass_at_k"):
            pass_at_k(n, c, k)


def test_majorities() -> None:
    answers, right = ["3", "4", "4", None, "3", "3"], [False, True, True, False, False, False]
    assert maj_at_k(answers, right, 4) and not maj_at_k(answers, right, 6)
    assert not maj_at_k(answers, right, 2), "a tie goes to the earliest"
    assert not maj_at_k([None, None], [False, False], 2)


def test_intervals() -> None:
    assert interval([1.0, 1.0]) == (1.0, 1.0)
    low, high = interval([0.0, 1.0] * 50)
    assert 0.38 < low < 0.45 < 0.55 < high < 0.62 and interval([0.0, 1.0] * 50) == (low, high)


class Scripted:
    """Answers problem i with the i-th list."""

    policy_version = 0

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = answers

    def generate(self, prompts, *, seed, sampling=None):  # type: ignore[no-untyped-def]
        return [RolloutGroup(prompt=p, rollouts=tuple(self._rollout(t) for t in self.answers[p.id])) for p in prompts]

    def _rollout(self, text: str) -> Rollout:
        reason: Any = "length" if text.endswith("...") else "stop"
        ids = tuple(range(len(text)))
        return Rollout(
            prompt_ids=(1,),
            completion_ids=ids,
            rollout_logprobs=(0.0,) * len(ids),
            text=text,
            finish_reason=reason,
            policy_version=0,
        )  # type: ignore[arg-type]


def test_known_answers_score_exactly_as_constructed(tmp_path: Path) -> None:
    prompts = [
        Prompt(id=str(i), messages=({"role": "user", "content": "?"},), fields={"answer": "4"}) for i in range(2)
    ]
    generator = Scripted(
        {
            "0": [r"\boxed{4}", r"\boxed{4.0}", r"\boxed{5}", "so ..."],
            "1": [r"\boxed{6}", "no", r"\boxed{6}", r"\boxed{4}"],
        }
    )
    evaluator = Evaluator(
        generator=generator, sets={"set": prompts}, reward=Reward("math_answer", 0.1, math_answer),  # type: ignore[arg-type]
        sampling=Sampling(group_size=4), k=[1, 2, 4], final_part=lambda t: t, extract=extract_answer, seed=0,
        room=Room(print),
    )  # fmt: skip
    metrics = evaluator(tmp_path)
    assert metrics["eval/set/avg@4"] == pytest.approx((0.5 + 0.25) / 2)
    assert metrics["eval/set/pass@2"] == pytest.approx((5 / 6 + 0.5) / 2) and metrics["eval/set/pass@4"] == 1.0
    assert metrics["eval/set/maj@1"] == 0.5 and metrics["eval/set/maj@4"] == 0.5
    assert metrics["eval/set/truncated"] == pytest.approx(1 / 8) and metrics["eval/set/problems"] == 2.0
    assert metrics["eval/set/avg@4/low"] <= metrics["eval/set/avg@4"] <= metrics["eval/set/avg@4/high"]
    first = json.loads((tmp_path / "set.jsonl").read_text().splitlines()[0])
    assert first["right"] == [True, True, False, False] and first["answers"] == ["4", "4.0", "5", None]
