"""The shapes of reward functions that people bring: what they are handed, and what they may return.

1. ground truths that are no text reach functions of verl and of TRL as they stand in the row; ours read their text; 2. asynchronous
functions of every kind are run to their value, together, in one loop; 3. TRL's ``trainer_state`` knows the step, and what is logged is
found among the rewards; 4. what may be returned, and the message for what may not; 5. a run with all of it.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onpolicy.annotation.scoring import evaluate_rewards, reward_inputs
from onpolicy.data.rows import to_prompt, unique_ids
from onpolicy.rewards.answer import exact_answer
from onpolicy.rewards.base import RewardError, TrainerState
from onpolicy.types import Rollout, RolloutGroup
from tests.runs import metrics, run_here, write_config


def group(row: Mapping[str, Any], *texts: str, version: int = 0) -> RolloutGroup:
    """Rollouts of the row's problem with these texts."""
    (prompt,) = unique_ids([to_prompt({"problem": "6 * 7?", **row}, default_id="p", prompt_template=None)])
    rollouts = (
        Rollout(
            prompt_ids=(1,), completion_ids=(2,), rollout_logprobs=(0.0,), text=text, finish_reason="stop",
            policy_version=version,
        )
        for text in texts
    )  # fmt: skip
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))


def rewarded(function: Any, row: Mapping[str, Any], *texts: str, version: int = 0) -> list[Mapping[str, float]]:
    found = evaluate_rewards({"it": function}, reward_inputs(group(row, *texts, version=version), str, steps=9))
    return [own.breakdown for own in found]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        *(({column: value}, value) for column in ("ground_truth", "answer") for value in (
            {"target": ["42", "forty-two"]}, ["42", "forty-two"], 42, 42.5, "42"
        )),
        ({"reward_model": {"ground_truth": {"target": ["42"]}, "style": "rule"}}, {"target": ["42"]}),
        ({"reward_model": '{"ground_truth": [1, {"a": null}]}'}, [1, {"a": None}]),
    ],
)  # fmt: skip
def test_a_ground_truth_is_handed_to_verls_functions_as_it_stands_in_the_row(
    row: dict[str, Any], expected: object
) -> None:
    seen: list[Any] = []

    def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None) -> float:
        seen.append(ground_truth)
        return 1.0

    rewarded(compute_score, row, "42")
    assert seen == [expected] and type(seen[0]) is type(expected)


def test_columns_reach_trls_functions_as_they_stand_in_the_row_and_ours_as_text() -> None:
    def accuracy(completions: Any, answer: list[Any], solution: list[Any], **kwargs: Any) -> list[float]:
        assert answer == [42] and solution == [{"final": "42"}], (answer, solution)
        return [1.0]

    row = {"answer": 42, "solution": {"final": "42"}}
    assert rewarded(accuracy, row, "42") == [{"it": 1.0}]
    assert rewarded(exact_answer, row, "\\boxed{42}", "\\boxed{4}") == [{"it": 1.0}, {"it": 0.0}]
    assert group(row, "x").prompt.fields["solution"] == '{"final": "42"}', "contexts show text"


async def later(completion: str, *, factor: float = 1.0) -> float | None:
    await asyncio.sleep(0)
    return factor * len(completion) if completion else None


async def for_group(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [await later(text, factor=2.0) for text in completions]


async def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None) -> Any:
    await asyncio.sleep(0)
    return {"score": await later(solution_str)}


@dataclass
class Grader:
    """As a dataclass it cannot be hashed."""

    factor: float = 3.0

    async def __call__(self, completion: str) -> float | None:
        return await later(completion, factor=self.factor)


def returns_coroutines(completions: list[str], **kwargs: Any) -> list[Any]:
    return [later(text) for text in completions]


@pytest.mark.parametrize(
    ("function", "factor"),
    [
        (later, 1.0),
        (functools.partial(later, factor=4.0), 4.0),
        (functools.partial(functools.partial(later), factor=4.0), 4.0),
        (Grader(), 3.0),
        (lambda completion: later(completion), 1.0),
        (for_group, 2.0),
        (returns_coroutines, 1.0),
        (compute_score, 1.0),
    ],
)
def test_asynchronous_functions_are_run_to_their_value(function: Any, factor: float) -> None:
    expected = [{"it": factor}, {}, {"it": 3 * factor}]
    assert rewarded(function, {"answer": "4"}, "a", "", "abc") == expected

    async def with_a_loop_of_ones_own() -> Any:
        return rewarded(function, {"answer": "4"}, "a", "", "abc")

    assert asyncio.run(with_a_loop_of_ones_own()) == expected
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(rewarded(function, {"answer": "4"}, "a", "", "abc")))
    thread.start()
    thread.join()
    assert found == [expected]


def test_samples_of_a_group_are_awaited_together_and_always_in_the_same_loop() -> None:
    loops = set()
    waiting: list[str] = []

    async def meets_the_others(completion: str) -> float:
        loops.add(asyncio.get_running_loop())
        waiting.append(completion)
        while len(waiting) < 3:
            await asyncio.sleep(0)
        return 1.0

    for _ in range(2):
        waiting.clear()
        assert len(rewarded(meets_the_others, {}, "a", "b", "c")) == 3
    assert len(loops) == 1, "a client that belongs to a loop works in the next step too"


def test_an_asynchronous_function_that_fails_is_named_with_its_sample() -> None:
    async def fails(completion: str) -> float:
        if completion == "b":
            raise KeyError("oops")
        return 1.0

    async def is_cancelled(completions: list[str]) -> list[float]:
        raise asyncio.CancelledError

    async def wants_more(completion: str, tests: list[str]) -> float:
        return 1.0

    for function, words in (
        (fails, "fails failed on 'p rollout 1': KeyError: 'oops'"),
        (is_cancelled, "is_cancelled failed on the group of 'p rollout 0': RuntimeError: it was cancelled"),
        (wants_more, "wants_more failed on 'p rollout 0': TypeError: it wants 'tests'"),
    ):
        with pytest.raises(RewardError) as caught:
            rewarded(function, {}, "a", "b", "c")
        assert words in str(caught.value)


def test_trls_trainer_state_knows_the_step() -> None:
    def by_group(completions: list[str], trainer_state: Any, **kwargs: Any) -> list[float]:
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    def alone(completion: str, trainer_state: TrainerState) -> float:
        return trainer_state.global_step

    def wants_more(completions: list[str], **kwargs: Any) -> list[float]:
        return [kwargs["trainer_state"].epoch] * len(completions)

    assert rewarded(by_group, {}, "a", "b", version=3) == [{"it": 3 / 9}] * 2
    assert rewarded(alone, {}, "a", version=4) == [{"it": 4.0}]
    with pytest.raises(RewardError, match=r"trainer_state has global_step and max_steps here, and no 'epoch'"):
        rewarded(wants_more, {}, "a")


def test_what_a_function_of_trls_shape_logs_stands_under_its_name() -> None:
    def logging(completions: list[str], log_metric: Any, log_extra: Any, **kwargs: Any) -> list[float]:
        log_metric("length", sum(map(len, completions)))
        log_extra("own", [len(text) for text in completions])
        return [1.0] * len(completions)

    def texts(completions: list[str], log_extra: Any, **kwargs: Any) -> list[float]:
        log_extra("answer", completions)
        return [1.0] * len(completions)

    assert rewarded(logging, {}, "a", "bcd") == [
        {"it": 1.0, "it/length": 4.0, "it/own": 1.0},
        {"it": 1.0, "it/length": 4.0, "it/own": 3.0},
    ]
    with pytest.warns(UserWarning, match=r"log_extra\('answer'\) holds 'a'; numbers alone are logged"):
        assert rewarded(texts, {}, "a") == [{"it": 1.0}]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"reward": 1.0}, "returned a mapping with the keys 'reward'; the key that is read is 'score'"),
        ({"acc": True, "Score": 1.0}, "the keys 'acc', 'Score'; the key that is read is 'score'"),
        ({}, "the keys none; the key that is read is 'score'"),
    ],
)
def test_a_mapping_without_a_score_is_refused_with_the_key_that_is_read(returned: Any, message: str) -> None:
    for function in (lambda completion: returned, lambda completions: [returned]):
        with pytest.raises(RewardError, match=message):
            rewarded(function, {}, "a")


async def sometimes(completion: str) -> float | None:
    """Asynchronous, and nothing to grade in every other rollout."""
    await asyncio.sleep(0)
    return None if len(completion) % 2 else float("a" in completion)


def of_a_group(completions: list[Any], trainer_state: Any, log_metric: Any, **kwargs: Any) -> list[float]:
    log_metric("step", trainer_state.global_step)
    return [trainer_state.max_steps * 0.1] * len(completions)


def test_a_run_with_all_of_it(tmp_path: Path) -> None:
    names = [f"tests.rewards.test_shapes:{name}" for name in ("sometimes", "of_a_group")]
    config = write_config(tmp_path, rewards=[{"name": name} for name in names], steps=3)
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "preflight.enabled=false") == 0
    rows = [row for row in metrics(tmp_path / "run") if "rollout/not_graded" in row]
    assert [row[f"reward/{names[1]}/step"] for row in rows] == [0.0, 1.0, 2.0]
    assert all(row[f"reward/{names[1]}"] == pytest.approx(0.3) for row in rows)
    assert 0.0 < sum(row["rollout/not_graded"] for row in rows) < len(rows)
