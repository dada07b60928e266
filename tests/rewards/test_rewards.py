"""Rewards: how functions are called, and the built-in ones.

1. functions of verl and of TRL work unchanged, with options as keyword-only parameters; 2. a reward that fails, wants what
is not there or returns no number is named with its sample; 3. every reward accepts its own gold answer and garbage never
raises; 4. math answers work in threads and a hopeless expression ends; 5. lengths and formats by hand.
"""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from onpolicy.rewards.answer import exact_answer, math_answer, readable
from onpolicy.rewards.base import RewardError, RewardInput, score
from onpolicy.rewards.calibration import brier, stated_confidence
from onpolicy.rewards.extract import boxed, extract_answer
from onpolicy.rewards.format import boxed_format, tagged_format, thinking_format
from onpolicy.rewards.gym import gym_answer
from onpolicy.rewards.length import brevity, overlong

MESSAGES = [{"role": "user", "content": "2 + 2?"}]


def sample(completion: str = "it is #### 4", **others: Any) -> RewardInput:
    fields = {
        "answer": "4",
        "data_source": "gsm",
        "extra_info": {"split": "train"},
        "difficulty": 3,
        **others.pop("fields", {}),
    }
    values = {
        "id": "gsm/1 rollout 0",
        "prompt": MESSAGES,
        "final": completion,
        "answer": "4",
        "num_tokens": 9,
        **others,
    }
    return RewardInput(completion=completion, fields=fields, **values)


def test_verl_functions_work_unchanged() -> None:
    def compute_score(
        data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None
    ) -> Any:
        assert data_source == "gsm" and extra_info == {"split": "train"}
        return {"score": float(solution_str.endswith(ground_truth)), "feedback": "none"}

    assert score(compute_score, [sample(), sample("#### 5")]) == [1.0, 0.0]


def test_trl_functions_work_unchanged() -> None:
    def accuracy(prompts: Any, completions: Any, answer: list[str], **kwargs: Any) -> list[float | None]:
        assert prompts[0] == MESSAGES and kwargs["difficulty"] == [3, 3] and kwargs["trainer_state"] is None
        kwargs["log_metric"]("anything", 1.0)
        return [1.0 if a in c[0]["content"] else None for c, a in zip(completions, answer, strict=True)]

    def standard(completions: list[str], **kwargs: Any) -> list[float]:
        return [float(len(c)) for c in completions]

    assert score(accuracy, [sample(), sample("no")]) == [1.0, None]
    assert score(standard, [sample("four", prompt="2 + 2?")]) == [4.0]


def test_parameters_are_filled_by_name_and_options_stay_options() -> None:
    def bonus(completion: str, difficulty: int, *, factor: float = 1.0) -> float:
        return factor * difficulty

    def whole(sample: RewardInput) -> bool:
        return sample.answer == "4"

    assert score(bonus, [sample()]) == [3.0]
    assert score(functools.partial(bonus, factor=2.0), [sample()]) == [6.0]
    assert score(whole, [sample()]) == [1.0]


def test_failures_name_the_reward_and_the_sample() -> None:
    def broken(completion: str) -> float:
        raise KeyError("oops")

    def wants_more(completion: str, tests: list[str]) -> float:
        return 1.0

    def not_a_number(completion: str) -> float:
        return float("nan")

    def too_few(completions: list[str]) -> list[float]:
        return [1.0]

    for function, words in (
        (broken, ["broken", "gsm/1 rollout 0", "KeyError", "oops"]),
        (wants_more, ["wants_more", "'tests'", "difficulty"]),
        (not_a_number, ["not_a_number", "finite"]),
        (too_few, ["too_few", "1 numbers for 2"]),
    ):
        with pytest.raises(RewardError) as caught:
            score(function, [sample(), sample()])
        assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}", "0.5"),
        ("#### 1,234", "1234"),
        ("The answer is 42.", "42"),
        (r"\boxed{x=3}", "3"),
        (r"\boxed{3}", "x=3"),
        (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"<think>\boxed{1}, no</think> \boxed{2}", "2"),
        (r"\boxed{7}", r"the answer is \boxed{7}"),
        (r"\boxed{50\%}", "50"),
    ],
)
def test_math_answers_that_are_right(completion: str, answer: str) -> None:
    assert math_answer(completion, answer)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("", "4"),
        ("nothing here", "5"),
        (r"\boxed{3}", "4"),
        (r"\boxed{", "4"),
        (r"<think>\boxed{4}</think> \boxed{5}", "4"),
        ("}{\\frac", "1"),
    ],
)
def test_math_answers_that_are_wrong(completion: str, answer: str) -> None:
    assert math_answer(completion, answer) is False


@pytest.mark.process
def test_math_answers_in_threads_and_with_a_deadline() -> None:
    found: list[bool] = []
    with ThreadPoolExecutor(1) as other:  # its start counts as well: until the process is up
        while not other.submit(math_answer, r"\boxed{3}", "3").result():
            pass

    def work() -> None:
        found.append(math_answer(r"\boxed{0.5}", r"\frac{1}{2}"))
        found.append(math_answer(r"\boxed{9^{9^{9^{9}}}}", "7"))
        found.append(math_answer(r"\boxed{3}", "3"))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # without a deadline of its own the second answer would take for ever
    assert found.count(True) == 4 and found.count(False) == 2, found


def test_exact_answers() -> None:
    assert exact_answer(r"\boxed{ New York }", "new york") and exact_answer("#### 5.", "5")
    assert not exact_answer(r"\boxed{\frac12}", "0.5") and not exact_answer("five", "5")


def test_extraction() -> None:
    assert boxed(r"\boxed{a{b}c} \boxed {d} \boxed{e") == ["a{b}c", "d"]
    assert extract_answer(r"\boxed{1} then \boxed{\text{if } x \{2\}}") == r"\text{if } x \{2\}"
    assert extract_answer("#### 3\nmore\n#### 5 apples\n") == "5 apples" and extract_answer("none") is None
    assert extract_answer(r"\boxed{1}</think>no box") is None


@pytest.mark.parametrize(
    "task",
    [
        "gsm_symbolic",
        "chain_sum",
        "prime_factorization",
        "simple_equations",
        "knights_knaves",
        "mini_sudoku",
        "countdown",
        "gcd",
    ],
)
def test_gym_answers(task: str) -> None:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(task, size=2, seed=3)
    for i in range(2):
        entry = dataset[i]
        fields = {"gym": {"task": task, "entry": entry}}
        gold = entry["answer"] if entry["answer"] is not None else entry["metadata"].get("solution")
        assert gym_answer(f"so\n#### {gold}" if "\n" not in str(gold) else str(gold), fields) == 1.0
        for garbage in ("", "banana", r"\boxed{}", "#### ???"):
            assert gym_answer(garbage, fields) < 0.5


def test_formats() -> None:
    assert (
        boxed_format(r"so \boxed{4}") and not boxed_format(r"\boxed{1} or \boxed{2}") and not boxed_format(r"\boxed{ }")
    )
    assert thinking_format("<think>hm</think>4") and thinking_format("hm</think>4")
    for bad in ("4", "<think>hm 4", "<think>a</think>b</think>4", "<think>a</think>  ", "x<think>a</think>4"):
        assert not thinking_format(bad), bad


def test_lengths_by_hand() -> None:
    assert [overlong(n, max_tokens=100, buffer=20) for n in (10, 80, 90, 100, 150)] == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert [brevity(n, budget=100) for n in (0, 25, 200)] == [1.0, 0.75, 0.0]


def test_the_brier_reward_by_hand() -> None:
    right, wrong = "\\boxed{4} <confidence>0.8</confidence>", "\\boxed{5} <confidence> 30 % </confidence>"
    assert brier(right, "4") == pytest.approx(-0.04) and brier(wrong, "4") == pytest.approx(-0.09)
    assert brier("\\boxed{4}", "4") == -1.0 and brier("\\boxed{4} <confidence>7</confidence>", "4") == -1.0
    assert stated_confidence("<confidence>1</confidence> no, <confidence>.25</confidence>") == 0.25
    assert [brier(text, "4", offset=1.0) for text in (right, wrong, "\\boxed{4}")] == pytest.approx([0.96, 0.91, 0.0])


@pytest.mark.parametrize(
    ("text", "read", "without_percent"),
    [
        ("<confidence> 80% </confidence>", 0.8, None),
        ("<confidence>1e-1</confidence>", 0.1, 0.1),
        ("<confidence>1.5</confidence>", None, None),
        ("<confidence>150 %</confidence>", None, None),
        ("<confidence>-0.2</confidence>", None, None),
        ("<confidence>nan</confidence>", None, None),
        ("<confidence>%</confidence>", None, None),
        ("<confidence></confidence>", None, None),
        ("<confidence>0.7</confidence> or <confidence>high</confidence>", None, None),
        ("<confidence>0.7</confidence> or <confidence>0.9", 0.7, 0.7),
        ("</confidence> 0.7 <confidence>", None, None),
    ],
)
def test_confidences_in_odd_forms(text: str, read: float | None, without_percent: float | None) -> None:
    assert stated_confidence(text) == read and stated_confidence(text, percent=False) == without_percent


def test_the_format_with_tags() -> None:
    good = "<think>hm</think> <answer>4</answer>\n<analysis>sure</analysis><confidence>0.9</confidence>\n"
    assert tagged_format(good) and tagged_format(good.removeprefix("<think>"))
    for bad in (
        "", good + "!", good.replace("0.9", "90%"), good.replace("0.9", "1.1"), good.replace("</think>", ""),
        good.replace("</answer>\n", "</answer> so "), good.replace("<answer>4</answer>\n", ""), good.rstrip()[:-1],
        "<think>hm</think> <analysis>sure</analysis> <answer>4</answer> <confidence>0.9</confidence>",
    ):  # fmt: skip
        assert not tagged_format(bad), bad
    assert tagged_format("a</think><answer>4</answer>", tags=["answer"], confidence=None)
    other = {"tags": ["answer"], "confidence": None, "close_tag": "[/THINK]"}
    assert tagged_format("a[/THINK] <answer>4</answer>", **other)  # type: ignore[arg-type]
    assert not tagged_format("a</think><answer>4</answer>", **other)  # type: ignore[arg-type]
    assert not tagged_format(good, tags=["answer", "analysis"], confidence=None), "more follows"
    assert tagged_format("</think></think><answer>a</answer>b</answer>", tags=["answer"], confidence=None)
    with pytest.raises(ValueError, match="expected at least one"):
        tagged_format(good, tags=[])


def test_stating_the_true_chance_pays_best() -> None:
    """Expected correctness + Brier at a chance of .7 is largest at a stated .7."""
    expected = {c / 10: 0.7 * (1 + brier(f"\\boxed{{4}}<confidence>{c / 10}</confidence>", "4"))
                + 0.3 * brier(f"\\boxed{{5}}<confidence>{c / 10}</confidence>", "4") for c in range(11)}  # fmt: skip
    assert max(expected, key=lambda c: expected[c]) == 0.7


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ("<think>\\boxed{9}</think> <answer>\\boxed{1}</answer> <analysis>it is not \\boxed{2}</analysis>", "1"),
        ("<answer>so 1/2</answer> #### 3", "so 1/2"),
        ("<answer> 7 </answer>", "7"),
        ("<answer></answer> \\boxed{2}", None),
        ("\\boxed{2} <answer>unclosed", "2"),
        ("<answer>1</answer> then <answer>\\boxed{5}</answer>", "5"),
        ("<answer>1</answer></think> \\boxed{4}", "4"),
    ],
)
def test_an_answer_in_its_tags_is_the_answer(completion: str, found: str | None) -> None:
    assert extract_answer(completion) == found


@pytest.mark.parametrize(
    ("reference", "can_be_read"),
    [
        ("2", True), (r"\frac{1}{2}", True), ("Friday", True), ("no solution", True), (7, True), (0.5, True), ("#### 12", True),
        (r'["\\frac12", "0.5"]', True), (["", "4"], True), (r"\{1, 2\}", True), ("BAC", True), ("a" * 3000, True), (True, True),
        ("", False), ("  \n", False), (None, False), (float("nan"), False), (float("inf"), False), ("proof", False), ("Proof.", False),
        ("notfound", False), ("See the solution.", False), ("N/A", False), ([], False), (["", None], False), ({"a": 1}, False), 
        ("?", False),
        ("Add both sides and see that the left one is even, so the right one has to be even too and we are done", False),
    ],
)  # fmt: skip
def test_references_that_can_be_read(reference: object, can_be_read: bool) -> None:
    assert readable(reference) is can_be_read
