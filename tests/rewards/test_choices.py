"""Multiple choice: letters and texts that a completion chooses, and those that choose nothing or too much."""

from __future__ import annotations

import pytest

from onpolicy.rewards.answer import math_answer
from onpolicy.rewards.base import RewardInput, score
from onpolicy.rewards.choices import choice_answer

OPTIONS = {"A": "sodium chloride", "B": "Co", "C": "CO", "D": "a mixture of 1.5 mol and 2.5 mol"}


@pytest.mark.parametrize(
    "completion",
    [
        "So \\boxed{B}.",
        "\\boxed{\\text{(B)}}",
        "Some thought.\nAnswer: B",
        "**Answer:** (B) Co",
        "<answer>B</answer>",
        "<answer>\nB. Co\n</answer>",
        "Answer: A\nNo, that is wrong.\nAnswer: B",
        "The answer is Co.",
        "<think>It may be A.\nAnswer: A</think>The correct option is B.",
        "<answer>b</answer>",
        "Answer: B because of its charge",
    ],
)
def test_the_second_option_is_chosen(completion: str) -> None:
    assert choice_answer(completion, "B", OPTIONS)
    assert not any(choice_answer(completion, other, OPTIONS) for other in "ACD")


@pytest.mark.parametrize(
    "completion",
    [
        "\\boxed{A}, \\boxed{B} and \\boxed{C}",
        "Answer: A or B",
        "<answer>A) and B)</answer>",
        "<answer>B. CO</answer>",
        "Answer: (B) or (C)",
        "It is B, I think",
        "<answer></answer>",
        "Answer: co",
        "Answer: E",
        "",
        "<think>Answer: B",
    ],
)
def test_nothing_is_chosen_or_too_much(completion: str) -> None:
    assert not any(choice_answer(completion, letter, OPTIONS) for letter in OPTIONS)


def test_texts_of_options() -> None:
    assert choice_answer("Answer: Sodium  chloride", "A", OPTIONS)
    assert choice_answer("<answer>a mixture of 1.5 mol and 2.5 mol</answer>", "D", OPTIONS)
    assert not choice_answer("<answer>a mixture of 15 mol and 25 mol</answer>", "D", OPTIONS)
    assert choice_answer("\\boxed{CO}", "C", OPTIONS) and not choice_answer("\\boxed{CO}", "B", OPTIONS)
    assert choice_answer("Answer: oxygen", "B", ["nitrogen", "oxygen"]), "a list is lettered in its order"
    elements = {"A": "C", "B": "N"}
    assert choice_answer("Answer: B", "B", elements) and not choice_answer("Answer: C", "A", elements), "a letter first"
    assert choice_answer("Answer: (A) salt", "A") and not choice_answer("Answer: A) and B)", "A"), "without options"


def test_math_answer_takes_the_first_of_two_letters() -> None:
    """Why there is a grader of its own."""
    assert math_answer("Answer: A) and B)", "A") and not math_answer("Answer: sodium chloride", "A")


def test_the_published_grader() -> None:
    def published(completion: str, **more: str) -> bool:
        return choice_answer(completion, "B", OPTIONS, **more, only_tag=True)

    assert published("<answer>A</answer> no, <answer> B\n</answer>")
    assert not any(map(published, ["\\boxed{B}", "<answer>b</answer>", "<answer>(B)</answer>", "<answer>Co</answer>"]))
    assert not published("<think><answer>B</answer>") and not published("<answer>B</answer>", final="")


def test_the_columns_reach_it() -> None:
    def scored(completion: str, **columns: object) -> list[float | None]:
        sample = RewardInput(id="1", prompt="?", completion=completion, final=completion, answer="B", fields=columns)
        return score(choice_answer, [sample])

    assert scored("Answer: Co", options=OPTIONS) == [1.0] and scored("Answer: Co") == [0.0]
    assert scored("Answer: B") == [1.0]


def test_a_free_answer_is_compared_as_mathematics() -> None:
    assert choice_answer("So \\boxed{1/2}.", "0.5") and not choice_answer("So \\boxed{2}.", "0.5")
