"""The lab's problems as a dataset."""

from __future__ import annotations

from typing import Literal

from onpolicy.data.errors import DataError
from onpolicy.lab.sets import families
from onpolicy.types import Prompt


def lab(*, family: str = "route-a-2", split: Literal["train", "test"] = "train") -> list[Prompt]:
    """Procedural problems on which doubt has a function, for the lab's reasoner (docs/lab.md). Needs no network.

    Columns: `answer`, also as `solution`; `first`, its beginning; `problem_id`, by which `onpolicy.lab.grading` finds the problem.

    Args:
        family: `route-MAP-HOPS` with map a, b or c and 2 or 3 hops, or `sums-COUNT` with 4 or 5 numbers
        split: `train`, or `test`: the 30 % that the reasoner has not seen either
    """
    if family not in families():
        raise DataError(f"data.family: got {family!r}, wanted one of {', '.join(families())}")
    train, test = families()[family]
    return [
        Prompt(
            id=problem.id,
            messages=({"role": "user", "content": problem.question},),
            fields={
                "answer": problem.answer,
                "solution": problem.answer,
                "first": problem.first,
                "problem_id": problem.id,
                "data_source": family,
            },
        )
        for problem in (train if split == "train" else test)
    ]
