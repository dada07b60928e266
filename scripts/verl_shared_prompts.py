"""How many tokens verl's ranks read in an update, and how many fewer if prompts that rows share were read once.

    build/verl/bin/python scripts/verl_shared_prompts.py > docs/results/verl_shared_prompts.json

Rows are put on ranks and into micro-batches by verl's own functions, which balance the work and know nothing of groups. ``together`` is
what could be had if they kept the rows of a group on one rank, side by side. Lengths are drawn (log-normal, capped); a teacher's prompt
holds the shortest answer of its group, which all rows of the group see.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions  # noqa: TID253 verl's own


@dataclass(frozen=True)
class Case:
    name: str
    prompts: int
    """In an update."""
    group: int
    answer: int
    """Mean length of answers."""
    longest: int
    budget: int
    """Tokens of a micro-batch on a GPU."""
    ranks: int
    prompt: int = 200


@dataclass(frozen=True)
class Row:
    group: int
    prompt: int
    answer: int
    sibling: int

    @property
    def size(self) -> int:
        return self.prompt + self.answer


CASES = (
    Case("sdpo, short answers", 32, 8, 1000, 8192, 16384, 8),
    Case("sdpo, short answers, one GPU", 32, 8, 1000, 8192, 16384, 1),
    Case("sdpo, prompts of 4,000 tokens", 32, 8, 1000, 8192, 16384, 8, prompt=4000),
    Case("the paper's Qwen3-8B, no thinking", 128, 8, 2000, 20480, 22528, 4),
    Case("the paper's Qwen3-8B, thinking", 128, 8, 10000, 20480, 22528, 4),
)


def drawn(case: Case) -> list[Row]:
    draw = random.Random(0)
    length = lambda: min(case.longest, max(16, int(draw.lognormvariate(math.log(case.answer) - 0.32, 0.8))))  # noqa: E731
    rows = []
    for group in range(case.prompts):
        answers = [length() for _ in range(case.group)]
        rows += [Row(group, case.prompt, answer, min(answers)) for answer in answers]
    return rows


def balanced(rows: Sequence[Row], parts: int, *, equal: bool) -> list[list[Row]]:
    work = calculate_workload(torch.tensor([row.size for row in rows]))
    return [[rows[i] for i in part] for part in get_seqlen_balanced_partitions(work, parts, equal_size=equal)]


def as_verl_does(case: Case, rows: Sequence[Row]) -> Iterable[list[Row]]:
    for rank in balanced(rows, case.ranks, equal=True):
        count = math.ceil(sum(row.size for row in rank) / case.budget)
        yield from balanced(rank, count, equal=False)


def together(case: Case, rows: Sequence[Row]) -> Iterable[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        if batch and sum(r.size for r in [*batch, row]) > case.budget:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def read(batch: Sequence[Row], *, teacher: bool, shared: bool) -> int:
    prompts = [(row.group, row.prompt + (row.sibling if teacher else 0)) for row in batch]
    return sum(row.answer for row in batch) + sum(length for _, length in (set(prompts) if shared else prompts))


def measured(case: Case) -> dict[str, object]:
    rows, found = drawn(case), {}
    for how in (as_verl_does, together):
        batches = list(how(case, rows))
        for who in ("student", "teacher"):
            once, each = (
                sum(read(batch, teacher=who == "teacher", shared=shared) for batch in batches)
                for shared in (True, False)
            )
            found[f"{who}, {how.__name__}"] = round(1 - once / each, 4)
    return {**asdict(case), "saved": found}


if __name__ == "__main__":
    print(json.dumps([measured(case) for case in CASES], indent=1))
