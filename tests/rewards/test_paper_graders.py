"""The two graders of arXiv 2603.24472: every branch by hand, what tells them from ``math_answer``, and gold answers of MATH500.

With ONPOLICY_BENCHMARKS naming a folder that holds math500.parquet, its first 200 answers are graded too; a list of others is here.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from onpolicy.data import load_prompts
from onpolicy.rewards.answer import math_answer
from onpolicy.rewards.paper import clean, paper_eval_answer, paper_train_answer, parts, same

pytestmark = pytest.mark.process  # that simplifies expressions, and can be killed


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its start counts as well, and takes long on a busy machine."""
    monkeypatch.setattr("onpolicy.rewards.paper.SECONDS", 120.0)


GRADERS = {"math": math_answer, "train": paper_train_answer, "eval": paper_eval_answer}

EQUAL = {
    "text": [
        ("3", "3"), (r"\dfrac{1}{2}", r"\frac12"), (r"\text{blue}", "Blue"), ("0.50", ".5"), (r"1\,000", "1000"), ("1,234,567", "1234567"),
    ],
    "units": [(r"12\text{ cm}", "12"), (r"90^\circ", "90"), (r"\$5", "5"), (r"30\%", "30"), (r"16\text{ in}^2", "16")],
    "prefix": [("x=5", "5"), (r"x\in[1,2]", "[1,2]"), ("f(x)=x+1", "x+1")],
    "choice": [("(B)", "B"), (r"\text{B}", "B"), ("D.", "D")],
    "number": [("0.3333", r"\frac{1}{3}"), (r"-\frac{3}{4}", "-0.75"), ("2e3", "2000")],
    "per cent": [("50", "0.5"), ("0.5", "50"), ("1000000", "10000")],
    "list": [("(1,2)", "[1, 2]"), (r"\left(\frac12,3\right)", "(0.5,3)"), ("1, -2", "1,-2"), ("(x+1,2)", "(1+x,2)")],
    "matrix": [(r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2.0 \end{pmatrix}")],
    "equation": [("2x+3y=1", "3y+2x-1=0"), ("2x+3y=1", "-2x-3y=-1")],
    "symbolic": [("(x+1)^2", "x^2+2x+1"), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}"), (r"\pi/2", r"\frac{\pi}{2}")],
}  # fmt: skip
DIFFERENT = [
    ("3", "4"), ("-3", "3"), ("(1,2)", "(2,1)"), ("(1,2)", "(1,2,3)"), ("C", "B"), ("x+1", "x+2"), ("2x=3", "2x=4"), ("1", "1.01"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"), ("", "5"), (")(", r"\frac{"), (r"\frac{1}{0}", "0"),
]  # fmt: skip
GOLD = [
    r"\left( 3, \frac{\pi}{2} \right)", "p - q", r"\frac{14}{3}", "9", r"\text{Evelyn}", "42", "27", r"90^\circ",
    r"3\sqrt{13}", "4", "2220", r"\frac{3}{56}", "284", "5", r"\sqrt{51}", r"6 - 5i", "-50", r"\pi", "28", "3",
    r"6+9i", "13535", r"10\%", "x=5", "144", "78", r"-2 + 7i", "225", r"52_8", r"11\sqrt2", "720", r"\frac{243}{625}",
    r"-125", "3, 5, 7", r"(3,4]", r"16\text{ km}", r"\text{(C)}", "-1", r"\frac{1}{2}",
    r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"(-\infty, 0]", r"x^3+3x-6", r"\sqrt[3]{5}", "1.25",
    r"\$32,\!348", r"2k+2", r"\frac{13}{6}",
]  # fmt: skip


@pytest.mark.parametrize("branch", EQUAL)
def test_equal(branch: str) -> None:
    for given, expected in EQUAL[branch]:
        assert same(given, expected), (given, expected, clean(given), clean(expected))


@pytest.mark.parametrize(("given", "expected"), DIFFERENT)
def test_different(given: str, expected: str) -> None:
    assert not same(given, expected)


def test_what_is_boxed_counts() -> None:
    assert paper_eval_answer(r"first \boxed{3}, no, \boxed{4} it is", "4")
    assert not paper_eval_answer(r"\boxed{4}, no, \boxed{3}", "4")
    assert paper_eval_answer(r"\boxed{\frac{1}{2}}", "0.5") and paper_eval_answer(r"$\boxed 7$ apples", "7")
    assert not paper_eval_answer("The answer is 4.", "4") and math_answer("The answer is 4.", "4")
    assert not paper_eval_answer(r"\boxed{4", "4") and not paper_eval_answer("", "4")


def test_thinking_that_is_complete_is_left_out() -> None:
    assert not paper_eval_answer(r"<think>\boxed{4}</think>I do not know", "4")
    assert paper_eval_answer(r"<think>\boxed{3}</think>\boxed{4}", "4")
    assert paper_eval_answer(r"hmm \boxed{4}</think>so it is", "4"), "without an opening tag the whole response is read"


def test_the_training_grader_looks_at_the_end() -> None:
    near, far = r"\boxed{4}" + "." * 91, r"\boxed{4}" + "." * 92
    assert len(near) == 100 and paper_train_answer(near, "4") and not paper_train_answer(far, "4")
    assert math_answer(far, "4") and paper_eval_answer(far, "4")
    assert paper_train_answer(r"\boxed{0.5}", r"\frac{1}{2}") and not paper_train_answer("4", "4")
    assert not paper_train_answer(r"\boxed{50}", "0.5") and paper_eval_answer(r"\boxed{50}", "0.5"), "per cent"


def test_lists_are_split_outside_of_brackets() -> None:
    assert parts("1,(2,3),{4,5}") == ["1", "(2,3)", "{4,5}"]


def test_in_a_thread_and_on_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    garbage = [
        "\\boxed{" + s + "}" for s in ("\\frac{}{}", "((((", "\x00", "x" * 3000, "\\sqrt{", "1e999", "é½", "9^9^9^9^9")
    ]
    with ThreadPoolExecutor(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("onpolicy.rewards.paper.SECONDS", 5.0)
            for text in garbage:
                assert not pool.submit(paper_eval_answer, text, "4").result()
                assert not pool.submit(paper_train_answer, text, "4").result()
        assert pool.submit(paper_eval_answer, r"\boxed{(x+1)^2}", "x^2+2x+1").result()


def perturbed(answer: str) -> str:
    """Another answer of the same form: another first digit, or another last letter that is no part of a command."""
    digits = list(re.finditer(r"\d", answer))
    if digits:
        at = digits[0].start()
        return answer[:at] + str((int(answer[at]) + 4) % 10) + answer[at + 1 :]
    letters = list(re.finditer(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", answer))
    if letters:
        at = letters[-1].start()
        return answer[:at] + ("k" if answer[at] != "k" else "m") + answer[at + 1 :]
    return "-7" + answer if "\\" in answer or not answer.isalpha() else answer[::-1] + "q"


def test_where_they_are_lenient() -> None:
    """Known and kept: what the evaluation grader of that family lets pass."""
    assert paper_eval_answer(r"\boxed{58504}", "58500") and not math_answer(r"\boxed{58504}", "58500"), (
        "1e-4 of a large number"
    )
    assert paper_eval_answer(r"\boxed{52_2}", "52_8") and not math_answer(r"\boxed{52_2}", "52_8"), (
        "the base of a number"
    )
    assert paper_eval_answer(r"\boxed{(0,1)}", "[0,1]"), "the kind of bracket"


def misjudged(answers: list[str]) -> list[tuple[str, str, str]]:
    found = []
    for answer in answers:
        for name, grader in GRADERS.items():
            right, wrong = rf"Therefore it is \boxed{{{answer}}}.", rf"Therefore it is \boxed{{{perturbed(answer)}}}."
            if not grader(right, answer):
                found.append((name, "right", answer))
            if grader(wrong, answer):
                found.append((name, "wrong", answer))
    return found


def test_gold_answers_are_right_and_their_perturbations_wrong() -> None:
    assert misjudged(GOLD) == []


@pytest.mark.skipif(
    "ONPOLICY_BENCHMARKS" not in os.environ, reason="ONPOLICY_BENCHMARKS names no folder with math500.parquet"
)
def test_two_hundred_gold_answers_of_math500() -> None:
    prompts = load_prompts(Path(os.environ["ONPOLICY_BENCHMARKS"]) / "math500.parquet")[:200]
    assert misjudged([p.fields["answer"] for p in prompts]) == []
