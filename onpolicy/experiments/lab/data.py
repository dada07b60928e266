"""The lab's problems as a dataset."""

from __future__ import annotations

from random import Random
from typing import Literal

from onpolicy.data.errors import DataError
from onpolicy.experiments.lab.interpreter import Program, answered, printed
from onpolicy.experiments.lab.problem import Problem, direct, mistaken, search
from onpolicy.experiments.lab.sets import families, partial_families, program_families
from onpolicy.types import Prompt


def lab(*, family: str = "route-a-2", split: Literal["train", "test"] = "train") -> list[Prompt]:
    """Procedural problems on which expressed uncertainty has a function, for the lab's reasoner (docs/lab.md). Needs no network.

    Columns: `answer`; `solution`, thought through aloud; `direct`, the same without a thought; `first`, the beginning of the
    answer; `mistaken`, a wrong answer in the form of `direct`; `problem_id`, by which `onpolicy.experiments.lab.grading` finds the problem.
    Programs, which need no search, have `answer`, `solution`, `direct` and `problem_id`.

    Args:
        family: `route-MAP-HOPS` with map a or b and 2 or 3 hops; `sums-COUNT` with 4 or 5 numbers; `run-STEPS`, programs of
            3 or 5 steps, which only the reasoner of `onpolicy lab learn_interpreter` knows; `route-c-2` and `sums-3-large`, of which
            the reasoner of `onpolicy lab learn_partial` knows part
        split: `train` or `test`; the reasoner has seen neither
    """
    searches, programs = families() | partial_families(), program_families()
    if family in programs:
        return [_program_prompt(program, family) for program in getattr(programs[family], split)]
    if family not in searches:
        raise DataError(f"data.family: got {family!r}, expected one of {', '.join([*searches, *programs])}")
    return [_prompt(problem, family) for problem in getattr(searches[family], split)]


def _program_prompt(program: Program, family: str) -> Prompt:
    return Prompt(
        id=program.id,
        messages=({"role": "user", "content": program.question},),
        fields={
            "answer": program.answer,
            "solution": answered(program, program.values),
            "direct": printed(program),
            "problem_id": program.id,
            "data_source": family,
        },
    )


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
