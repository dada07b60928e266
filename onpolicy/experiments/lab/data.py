"""The lab's problems as a dataset."""

from __future__ import annotations

from random import Random
from typing import Literal

from onpolicy.data.errors import DataError
from onpolicy.experiments.lab.problem import Problem, direct, mistaken, search
from onpolicy.experiments.lab.sets import families
from onpolicy.types import Prompt


def lab(*, family: str = "route-a-2", split: Literal["train", "test"] = "train") -> list[Prompt]:
    """Procedural problems on which expressed uncertainty has a function, for the lab's reasoner (docs/lab.md). Needs no network.

    Columns: `answer`; `solution`, thought through aloud; `direct`, the same without a thought; `first`, the beginning of the
    answer; `mistaken`, a wrong answer in the form of `direct`; `problem_id`, by which `onpolicy.experiments.lab.grading` finds the problem.

    Args:
        family: `route-MAP-HOPS` with map a or b and 2 or 3 hops, or `sums-COUNT` with 4 or 5 numbers
        split: `train` or `test`; the reasoner has seen neither
    """
    if family not in families():
        raise DataError(f"data.family: got {family!r}, expected one of {', '.join(families())}")
    return [_prompt(problem, family) for problem in getattr(families()[family], split)]


def _prompt(problem: Problem, family: str) -> Prompt:
    draw = Random(problem.id)
    return Prompt(
        id=problem.id,
        messages=({"role": "user", "content": problem.question},),
        fields={
            "answer": problem.answer,
            "solution": search(problem, draw),
            "direct": direct(problem),
            "first": problem.first,
            "mistaken": mistaken(problem, draw),
            "problem_id": problem.id,
            "data_source": family,
        },
    )
