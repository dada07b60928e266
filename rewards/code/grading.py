"""The reward of code: a program from a completion, run on its problem's tests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ..extract import after_thinking
from . import feedback as said
from .problems import CodeProblem, problem_of
from .sandbox import Limits, Outcome, SandboxUnavailable, mechanism, run_tests
from .tests import Test

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """What the tests say of a program."""

    correct: bool
    reason: str = ""
    """Why it is not, as the text that a teacher may read (``feedback``)."""


def code_tests(
    completion: str,
    fields: Mapping[str, Any],
    final: str | None = None,
    finish_reason: str = "stop",
    *,
    cpu_seconds: int = 6,
) -> dict[str, Any]:
    """1 where the last block of code passes all tests of the row, else 0, with feedback about the first test that failed.

    Programs run in a sandbox (`onpolicy doctor` says which) with Python's standard library and no other package; rows have the shape of
    LiveCodeBench, APPS or MBPP.

    Args:
        cpu_seconds: of processor time that each test may take
    """
    verdict = grade_completion(completion, problem_of(fields), final, finish_reason, cpu_seconds=cpu_seconds)
    return {"score": float(verdict.correct), "feedback": verdict.reason or None}


def ready(**options: Any) -> None:
    """Raises SandboxUnavailable, which says what to install, where programs cannot be run safely."""
    mechanism()


code_tests.ready = ready  # type: ignore[attr-defined]


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``code_tests`` as verl calls it: tests from ``ground_truth`` (APPS's ``input_output``, as in verl's code rows) or from the columns of
    ``extra_info``."""
    row = extra_info or {}
    if ground_truth:
        held = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
        row = held if "test_list" in held or "public_test_cases" in held else {"input_output": held}
    verdict = grade_completion(solution_str, problem_of(row))
    return {"score": float(verdict.correct), "feedback": verdict.reason}


def grade_completion(
    completion: str,
    problem: CodeProblem,
    final: str | None = None,
    finish_reason: str = "stop",
    *,
    cpu_seconds: int = 6,
) -> Verdict:
    """Grades the program in a completion."""
    program = extract_program(after_thinking(completion) if final is None else final)
    if program is None:
        return Verdict(False, said.TRUNCATED if finish_reason == "length" else said.NO_PROGRAM)
    return grade(program, problem, Limits(cpu_seconds=cpu_seconds, wall_seconds=5.0 + 3 * cpu_seconds))


def grade(program: str, problem: CodeProblem, limits: Limits | None = None) -> Verdict:
    """Runs a program on its problem's tests, to the first that fails.

    Raises:
        SandboxUnavailable: this machine cannot run it safely.
    """
    requests = [test.request for test in problem.tests]
    with closing(run_tests(program, requests, setup=problem.setup, limits=limits)) as outcomes:
        for number, (test, outcome) in enumerate(zip(problem.tests, outcomes, strict=False), start=1):
            if reason := _failure(number, test, outcome):
                return Verdict(False, reason)
    return Verdict(True)


def _failure(number: int, test: Test, outcome: Outcome) -> str:
    """Why a test failed; empty where it did not."""
    if outcome.kind == "done" and _accepts(test, outcome):
        return ""
    given, got, expected = test.shown(outcome)
    if outcome.kind == "timeout":
        return said.limit_exceeded("Time", given)
    if outcome.kind == "output":
        return said.limit_exceeded("Output", given)
    if outcome.kind == "error":
        return said.runtime_error(outcome.error, given)
    return said.wrong_answer(number, given, got, expected)


def _accepts(test: Test, outcome: Outcome) -> bool:
    """Whether the outcome is the correct one; a value that cannot be compared (nested too deep, a number too large) is not."""
    try:
        return test.accepts(outcome)
    except (SandboxUnavailable, OSError):  # no fault of the program's
        raise
    except Exception:
        return False


def extract_program(text: str) -> str | None:
    """The last block of code that is fenced and closed; None without one."""
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else None
