"""Prompts, thinking, warm-up and graders of arXiv 2603.24472's code: each golden case is equal, or a committed difference with its cause.

``ONPOLICY_GOLDEN=<folder>`` compares another folder of the same format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from onpolicy.experiments.parity.fixtures import accepted_differences, golden_folder
from onpolicy.experiments.parity.texts import KINDS, TextFinding, compare_texts, student_message

pytestmark = pytest.mark.process  # the evaluation grader's, that can be killed


@pytest.fixture(scope="module")
def findings() -> list[TextFinding]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onpolicy.rewards.paper_equality.SECONDS", 120.0)  # the machine may be busy
        return [finding for kind in KINDS for finding in compare_texts(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_case_is_equal_or_a_known_difference(kind: str, findings: list[TextFinding]) -> None:
    mine = [finding for finding in findings if finding.case.startswith(f"{kind}/")]
    assert mine or not (golden_folder() / "texts" / f"{kind}.json").exists()
    known = accepted_differences()
    assert {f.case: f.difference for f in mine if not f.equal and f.case not in known} == {}


def test_a_known_difference_is_still_one(findings: list[TextFinding]) -> None:
    known = accepted_differences()
    assert [f.case for f in findings if f.equal and f.case in known] == [], "equal now: take it out of accepted.json"
    assert all(difference.cause.strip() for difference in known.values()), "each difference has its cause"


def test_cases_have_names_of_their_own(findings: list[TextFinding]) -> None:
    assert len({f.case for f in findings}) == len(findings)


def write(folder: Path, kind: str, content: Mapping[str, Any]) -> Path:
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts" / f"{kind}.json").write_text(json.dumps(content))
    return folder


def test_another_folder_and_what_differs(tmp_path: Path) -> None:
    """Texts written for this test; each kind has one case that is equal and one that is not."""
    end = "\nPlease reason step by step, and put your final answer within \\boxed{}."
    told = [
        {
            "role": "user",
            "content": f"Ωhat is {{x}}?{end}\nCorrect solution:\n\nseven\n\nCorrectly solve the original question.",
        }
    ]
    case = {"name": "own", "problem": "\t Ωhat is {x}?\u00a0\n\n", "earlier_messages": [], "attempts": ["six", "<think>hm</think>\n seven"],
            "rewards": [0.0, 1.0], "feedback": None, "out_student": f"Ωhat is {{x}}? {end}", "out_solution": [None, None],
            "out_solution_without_thinking": [told, None], "out_feedback": [None, None]}  # fmt: skip
    write(tmp_path, "prompts", {"cases": [case]})
    write(
        tmp_path,
        "thinking",
        {"cases": [{"name": "a", "text": "<think>x", "out": "<think>x"}, {"name": "b", "text": "x", "out": ""}]},
    )
    write(tmp_path, "lr_warmup", {"steps": 20, "out_factor": [0.1, 0.2]})
    write(
        tmp_path,
        "train_grader",
        {"cases": [{"form": "f", "completion": "\\boxed{1}", "gold": "1", "out": out} for out in (True, False)]},
    )
    found = {f.case: f for kind in KINDS for f in compare_texts(kind, tmp_path)}
    assert {name for name, f in found.items() if f.equal} == {
        "prompts/own_solution_1", "prompts/own_solution_without_thinking_0", "prompts/own_solution_without_thinking_1", "thinking/a",
        "train_grader/f 0",
    }  # fmt: skip
    assert (
        found["prompts/own_student"].difference.startswith("at 12: ")
        and "no context" in found["prompts/own_solution_0"].difference
    )
    assert "0.0, 0.1], published [0.1, 0.2]" in found["lr_warmup/paper/math"].difference
    assert "True, published False" in found["train_grader/f 1"].difference


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        ("  a\n b \n", "a\n b"), ("{problem} {", "{problem} {"), ("\\boxed{1} {problem}", "\\boxed{1} {problem}"),
        ("ünï ², 問", "ünï ², 問"),
        ("\u3000全角\u2003", "全角"), ("a\r\n", "a"),
    ],
)  # fmt: skip
def test_a_problem_fills_the_template_without_white_space_around_it(problem: str, shown: str) -> None:
    assert (
        student_message(problem)
        == f"{shown}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    )
