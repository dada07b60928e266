"""Coding problems of LiveCodeBench, APPS and MBPP: what the student reads of a row. Its tests stay columns, for the reward `code_tests`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onpolicy.data.references import Found
from onpolicy.rewards.code.problems import shape_of, shown_tests

QUESTIONS = {
    "LiveCodeBench": ("question_content",),
    "APPS": ("question", "problem", "prompt"),
    "MBPP": ("prompt", "text"),
}
"""Dataset -> where its rows have the question; MBPP has two editions."""


def code_question(row: Mapping[str, Any]) -> Found | None:
    """The question of a row with tests, with its starter code, or with MBPP's tests, which name the function; never a solution, and none of
    the other tests. None where the row is no coding problem, or has its question as messages.

    Raises:
        ValueError: a column of tests cannot be read.
    """
    shape = shape_of(row)
    if shape is None or row.get("messages") is not None:
        return None
    column = next((name for name in QUESTIONS[shape] if row.get(name)), None)
    if column is None or not isinstance(question := row[column], str):
        return None
    if shape == "MBPP":
        tests = "\n".join(shown_tests(row))
        return Found(f"{question.strip()}\n\nYour code should pass these tests:\n\n{tests}", f"{column}, test_list")
    starter = row.get("starter_code")
    if not isinstance(starter, str) or not starter.strip():
        return Found(question, column)
    begins = "You will use the following starter code to write the solution to the problem:"
    return Found(f"{question.strip()}\n\n{begins}\n```python\n{starter.strip()}\n```", f"{column}, starter_code")
