"""Where an answer stands, what equals what, and how long that may take.

``grading_cases.jsonl`` holds completions whose correctness nobody disputes, of every kind in which graders are known to err, half of them
wrong. The format is that of ``python -m tests.grading``.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from onpolicy.rewards.answer import exact_answer, math_answer
from onpolicy.rewards.base import RewardInput, score
from onpolicy.rewards.calibration import brier
from onpolicy.rewards.deadline import TIMED_OUT, time_limit
from onpolicy.rewards.equality import by_equality, equal_answers
from onpolicy.rewards.extract import after_thinking, boxed, extract_answer, stated_answers
from onpolicy.rewards.paper import paper_eval_answer
from onpolicy.rewards.paper_equality import clean as paper_clean
from onpolicy.rewards.uncertainty import recovery
from onpolicy.utils.thinking import split_thinking
from tests.grading import GRADERS, errors, read_cases

CASES = read_cases(Path(__file__).with_name("grading_cases.jsonl"))


def test_math_answer_is_wrong_on_at_most_two_per_cent_either_way() -> None:
    found = errors(math_answer, CASES)
    assert found.right > 400 and found.wrong > 300
    assert len(found.refused) <= 0.02 * found.right, found.refused
    assert len(found.accepted) <= 0.02 * found.wrong, found.accepted


def test_the_rates_of_graders_are_told_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import grading

    file = str(Path(__file__).with_name("grading_cases.jsonl"))
    monkeypatch.setattr("sys.argv", ["grading", file, "--grader", "exact_answer", "--kinds"])
    grading.main()
    said = capsys.readouterr().out
    assert (
        said.startswith("exact_answer")
        and "right refused" in said
        and "wrong accepted" in said
        and "  interval" in said
    )
    assert set(GRADERS) == {"math_answer", "exact_answer", "paper_train_answer", "paper_eval_answer"}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### Step 1\nRead.\n#### Step 2\nThe final answer is 18.", "18"), ("#### Final Answer\n\n72", "72"), ("##### 72", None),
        ("#### 1. Read\nx\n#### 2. Solve\ny", None), ("#### 1. Read\nx\n#### 12 apples", "12 apples"), ("one line #### 7", "7"),
        ("She has 72 apples. It cannot be solved.", None), ("There are **73** of them.", "73"), ("**72** apples. Unsolvable.", None),
        ("The answer is not 5.", None), ("Is the answer 5? Who knows.", None), ("Answer: 34, because 12 + 22 = 34.", "34"),
        (r"The roots are $\boxed{2}$ and $\boxed{5}$.", "2, 5"), (r"not \boxed{71} but \boxed{72}", "72"), (r"\boxed{}", None),
        (r"Therefore $x = 5$.", "5"), ("So 3 of them are red.", None), (r"\boxed 72", "72"), ("**Answer:** (B)", "(B)"),
        (r"<think>\boxed{1}", None), (r"a<think>\boxed{1}</think>b \boxed{2}<think>\boxed{3}</think>", "2"),
    ],
)  # fmt: skip
def test_where_an_answer_stands(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42. This answer is consistent with our estimate.", "42"), ("Answer: 42\n\nNote that this answer is exact.", "42"),
        ("The answer is 42.\nI hope this answer helps!", "42"), ("The answer is given by $\\frac12$.", "\\frac12"),
        ("Option (B) is the correct answer.", "B"), ("Therefore, option B is correct.", "B"), ("**B** is the best choice.", "B"),
        ("The answer is (C): 3 m. Option (A) is correct only for g = 0.", "(C): 3 m"), ("If option B is correct, then so is D.", None),
        ("Statement B is correct.", None), ("The answer: correct", "correct"), ("The answer is about 5.2.", "5.2"),
        ("Answer: There are 12 ways.", "12 ways"), ("The answer is that Tom has 12 apples left.", "12 apples left"),
        ("Answer: No, the limit is 0.", "No, the limit is 0"), ("Answer: B) The value is 5", "B) The value is 5"),
        ("The answer is $12, which is $3 more than $9.", "$12"), ("Answer: $12 (since $3 × 4 = $12)", "$12"),
    ],
)  # fmt: skip
def test_what_is_said_of_an_answer_is_none(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("expected", "equal", "different"),
    [
        (r"\{x \mid 0 \le x < 5\}", [r"[0,5)", r"0 \le x < 5", r"\{x \in \mathbb{R} : 0\leq x<5\}"], [r"(0,5)", r"\{0, 5\}", "5"]),
        (r"(-\infty, -3) \cup (1, \infty)", [r"\{x \mid x<-3 \text{ or } x>1\}"], [r"\{x \mid x<-3\}", r"\{x \mid -3<x<1\}"]),
        (r"\mathbb{R}", [r"(-\infty, +\infty)", r"\mathbb R"], [r"\mathbb{Q}", r"[0, \infty)"]),
        (r"x_1=1, x_2=-2", ["x=-2, x=1", "1, -2"], ["x=2, x=1", "x_1=-2, x_2=1"]),
        ("5", [r"\color{red}{5}", r"\textcolor{blue}{5}", r"\large 5", r"{\bf 5}", "\\ 5\\ ", r"\mathbf 5"], [r"\color{5}{6}"]),
        ("-5", ["{-}5"], ["5"]), (r"\frac38", [r"\nicefrac{3}{8}"], [r"\nicefrac{8}{3}"]), (r"\log_{10} 2", [r"\lg 2"], [r"\lg 3"]),
        ("6", [r"3! \bmod 7 = 6", r"\text{lcm}(2, 3)"], [r"2\sin x = 6", r"\text{lcm}(2, 4)"]),
        ("25", [r"25\ \Omega", r"25\,\mu\text{m}", r"25 \text{ nm}", r"25\,{\rm cm}", "25 kΩ"], [r"25 nm + 1", "25nm"]),
        ("18", [r"\$18 \text{ per person}"], [r"\$81 \text{ per person}"]), ("A", [r"A \frac12", r"(A)\ 5"], [r"A \cup B", r"A \times B"]),
        ("x=1, y=2", [r"\left\{\begin{array}{l} x=1 \\ y=2 \end{array}\right.", r"\begin{cases} x = 1, \\[2pt] y = 2 \end{cases}",
                      r"\begin{aligned} x &= 1 \\ y &= 2 \end{aligned}"], [r"\begin{cases} x=2 \\ y=1 \end{cases}"]),
        (r"\text{2 hours 30 minutes}", [r"2\text{ hours and } 30\text{ minutes}"], [r"3 \text{ hours } 20 \text{ minutes}", "230"]),
        (r"15 \text{ apples, } 3 \text{ pears}", [r"\text{3 pears and 15 apples}"], [r"\text{3 apples and 15 pears}"]),
        (r"k\pi, k \in \mathbb{Z}", [r"k\pi \quad (k \in \mathbb{Z})"], [r"2k\pi \ (k \in \mathbb{Z})"]),
        (r"\vec{a}+\vec{b}", [r"\vec b + \vec a"], [r"\vec b - \vec a"]), ("5.2", [r"\text{approximately } 5.2"], [r"\text{about } 8"]),
        (r"15 \text{ km/h}", ["15", r"15\,\mathrm{km\,h^{-1}}",
          r"15\frac{\text{km}}{\text{h}}", "15 kilometers per hour", "15 kmh"],
         [r"15 \text{ m/s}", "15 mph"]), ("9 mph", [r"9\text{ miles per hour}", r"9\text{ mi/h}"], ["9 km/h"]),
        ("(2, 0, -1)", [r"\langle 2, 0, -1\rangle"], [r"\langle 2, -1, 0\rangle"]), ("70", [r"\binom84", r"\dbinom{8}{4}"], [r"\binom83"]),
        (r"1.6 \times 10^{-19}", [r"1.6\times10^{-19}\ \text{C}"], [r"1.6\times10^{19}\ \text{C}"]), ("25", ["25 C", "25°C"], ["25C"]),
        (r"25 \text{ nm}", ["25"], [r"25\,\mu\text{m}"]), ("2nm", ["2mn"], ["2"]),
        ("e4 e5", ["E4, e5", r"\text{e4 e5}"], ["e5 e4", "e4"]), ("A1, B2", ["B2, A1"], ["A2, B1"]),
        ("c12", ["x = c12"], ["c21", "c+12", "c^{12}", "c/12"]), ("x2", ["x_2"], ["-x2", "x-2", "x^2", "x^{-2}", "x/2"]),
        ("C_6H_{12}O_6", ["C6H12O6"], ["C6H6O12", "C6+H12+O6"]), ("H2O", ["H_2O"], ["HO2", "H_2+O"]), ("m1v1", ["v1m1"], ["m1v2"]),
        ("x_1x_2", ["x_2x_1"], ["x_1+x_2", "x1 - x2"]), ("k+1", ["1+k"], ["k1"]), ("x1 x2", ["x_1 x_2"], ["x1+x2", "x1<x2", "x1, x3"]),
    ],
)  # fmt: skip
def test_what_equals_what(expected: str, equal: list[str], different: list[str]) -> None:
    assert [given for given in equal if not equal_answers(given, expected)] == []
    assert [given for given in different if equal_answers(given, expected)] == []


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "<think>a",
        "<think>a</think> b",
        "a</think>b",
        "a</think>b</think>c",
        "a<think>b</think>c<think>d",
        "<think></think>",
    ],
)
def test_rewards_and_contexts_read_thinking_alike(text: str) -> None:
    assert after_thinking(text) == split_thinking(text, opened=False).answer


def test_nothing_of_a_completion_that_is_cut_off_in_its_thinking_is_an_answer() -> None:
    cut = r"17+25 = 42. But wait, let me check \boxed{42}? The answer is 42. <confidence>0.9</confidence>"
    for grader in (math_answer, exact_answer):
        assert score(grader, [_sample(cut, final="")]) == [0.0] and score(grader, [_sample(cut, final=cut)]) == [1.0]
        assert score(grader, [_sample("<think>" + cut, final="")]) == [0.0]
        assert not grader("<think>" + cut, "42"), "by itself it reads the tag"
    assert brier(cut, "42", "") == -1.0 and brier(cut, "42") == pytest.approx(-0.01), "no confidence, no answer"
    changed = r"\boxed{41}, no, \boxed{42}"
    assert recovery(changed, "42", changed) == 1.0 and recovery(changed, "42", "") == 0.0


def _sample(completion: str, final: str) -> RewardInput:
    return RewardInput(id="p", prompt="", completion=completion, final=final, answer="42")


def test_equal_answers_share_a_vote() -> None:
    assert by_equality([r"\frac12", None, "1/2", "2", "0.5", "x = 2"]) == [0, None, 0, 3, 0, 3]
    assert by_equality(["BAC", "ABC", "bac"]) == [0, 1, 0]


DEGENERATE = (
    r"\boxed{", r"\text{", r"\frac", r"\sqrt", r"\mbox{", "{", "(", "7", "1 1 ", "1/", "#### a\n", "answer is not ", r"answer is \[ ", "$",
    "**", r"\(", "<think>", r"\boxed{a} and ",
)  # fmt: skip


@pytest.mark.parametrize("unit", DEGENERATE)
def test_degenerate_text_takes_linear_time(unit: str) -> None:
    def seconds(characters: int) -> float:
        text = unit * (characters // len(unit))
        found = []
        for _ in range(3):  # the fastest counts: garbage collection may fall into any of them
            started = time.process_time()
            extract_answer(text), stated_answers(text), boxed(text), paper_clean(text), equal_answers(text, "72 apples")
            found.append(time.process_time() - started)
        return min(found)

    seconds(2_000)  # imports
    assert seconds(76_000) < 10 * seconds(19_000) + 1.0, (
        "four times the text; quadratic would be sixteen, and tens of seconds"
    )


def test_brackets_within_brackets_are_taken_off_in_a_loop() -> None:
    for opens, closes in (("{", "}"), ("(", ")")):
        deep = "\\boxed{" + opens * 500 + "7" + closes * 500 + "}"
        assert math_answer(deep, "7") and not math_answer(deep, "8") and paper_eval_answer(deep, "7")
    assert not math_answer("\\boxed{" + "\\sqrt{" * 300 + "7" + "}" * 300 + "}", "7"), (
        "too deep to be read: different, no error"
    )


@pytest.mark.parametrize(
    "given",
    [
        r"9^{9^{9^{9}}}",
        r"(10^9)!",
        r"((7!)!)!",
        r"2^{2^{40}}",
        "7" * 9000,
        "\x00",
        "\ud800",
        r"\frac{}{}",
        r"\begin{pmatrix}",
        "x" * 9000,
    ],
)
def test_what_cannot_be_computed_is_different_at_once(given: str) -> None:
    started = time.monotonic()
    assert not equal_answers(given, "7") and not equal_answers(given, r"\sqrt{7}+x")
    assert time.monotonic() - started < 30.0


def test_a_comparison_has_a_deadline() -> None:
    def forever() -> bool:
        while True:
            pass

    assert time_limit(forever, seconds=0.05) is TIMED_OUT
    assert time_limit(lambda: 1 / 0, seconds=1.0) is None and time_limit(lambda: 3, seconds=1.0) == 3


def test_loading_libraries_is_outside_of_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first comparison of a run loads sympy, which a busy machine does not do in five seconds."""
    (tmp_path / "slow_to_load.py").write_text("import time\ntime.sleep(0.3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert time_limit(lambda: "slow_to_load" in sys.modules, seconds=0.1, libraries=["slow_to_load"]) is True


@pytest.mark.process
def test_in_other_threads_formulas_are_compared_elsewhere() -> None:
    found: list[bool] = []

    def work() -> None:
        found.append(equal_answers(r"\sqrt{28}", r"2\sqrt{7}"))
        found.append(equal_answers(r"\sum_{k=1}^{10^9} \frac{1}{k^2}", "2"))
        found.append(equal_answers(r"\sqrt{28}", r"2\sqrt{6}"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, False, False]
