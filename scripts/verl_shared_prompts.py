"""How many tokens verl's ranks compute in an update, as verl lays rows out and as onpolicy does, which reads a prompt that rows share once.

    build/verl/bin/python scripts/verl_shared_prompts.py > docs/results/verl_shared_prompts.json

``verl`` puts rows on ranks and into micro-batches with verl's own functions. ``own ranks`` keeps verl's ranks and shares prompts within
them; ``onpolicy`` is what a run does: groups stay together on a rank where the slowest rank is done earlier for it. The work is that of
the slowest rank, in verl's own measure. Lengths are drawn (log-normal, capped); a teacher's prompt holds the shortest other answer of
its group, so that all rows but one see the same.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions  # noqa: TID253 verl's own

from onpolicy.integrations.verl.group_order import WITH_GRADIENT, StepLayout, best_order, step_work
from onpolicy.integrations.verl.shared_prompts import Count, Readers, Stretch, count


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

    @property
    def rank_layout(self) -> StepLayout:
        return StepLayout(number=self.ranks, updates=1, budget=self.budget)


CASES = (
    Case("sdpo, short answers", 32, 8, 1000, 8192, 16384, 8),
    Case("sdpo, short answers, one GPU", 32, 8, 1000, 8192, 16384, 1),
    Case("sdpo, prompts of 4,000 tokens", 32, 8, 1000, 8192, 16384, 8, prompt=4000),
    Case("the paper's Qwen3-8B, no thinking", 128, 8, 2000, 20480, 22528, 4),
    Case("the paper's Qwen3-8B, thinking", 128, 8, 10000, 20480, 22528, 4),
)


def drawn(case: Case) -> Readers:
    draw = random.Random(0)
    length = lambda: min(case.longest, max(16, int(draw.lognormvariate(math.log(case.answer) - 0.32, 0.8))))  # noqa: E731
    student, teacher = [], []
    for group in range(case.prompts):
        answers = [length() for _ in range(case.group)]
        shortest, second = sorted(range(case.group), key=lambda i: answers[i])[:2]
        for i, tokens in enumerate(answers):
            answer, seen = Stretch((group, i), tokens), second if i == shortest else shortest
            student.append((Stretch(group, case.prompt), answer))
            teacher.append((Stretch((group, seen), case.prompt + answers[seen]), answer))
    return Readers(student, [teacher])


def balanced(readers: Readers, rows: Sequence[int], parts: int, *, equal: bool) -> list[list[int]]:
    lengths = torch.tensor([sum(map(len, readers.student[i])) for i in rows])
    found = get_seqlen_balanced_partitions(calculate_workload(lengths), parts, equal_size=equal)
    return [[rows[i] for i in part] for part in found]


def verls_micro_batches(case: Case, readers: Readers, rows: Sequence[int]) -> list[list[int]]:
    """As few of about the same work as hold no more tokens than the budget each."""
    size = lambda batch: sum(len(ids) for i in batch for ids in readers.student[i])  # noqa: E731
    number = math.ceil(size(rows) / case.budget)
    while max(map(size, found := balanced(readers, rows, number, equal=False))) > case.budget:
        number += 1
    return found


def verls_tokens(case: Case, readers: Readers, ranks: Sequence[Sequence[int]]) -> tuple[Count, Count]:
    """What is computed, and what would be if verl's micro-batches were read with equal prompts once."""
    student, teacher = Count(), Count()
    for rows in ranks:
        for batch in verls_micro_batches(case, readers, rows):
            own, *theirs = readers.passes(batch, case.budget)
            student += sum(map(count, own), Count())
            teacher += sum((count(part) for context in theirs for part in context), Count())
    return student, teacher


def own_tokens(case: Case, readers: Readers, ranks: Sequence[Sequence[int]]) -> tuple[Count, Count]:
    student, teacher = Count(), Count()
    for rows in map(readers.of, ranks):
        for batch in rows.cut(case.budget):
            own, *theirs = rows.passes(batch, case.budget)
            student += sum(map(count, own), Count())
            teacher += sum((count(part) for context in theirs for part in context), Count())
    return student, teacher


def apart_work(readers: Readers, ranks: Sequence[Sequence[int]]) -> int:
    """Of the slowest rank if nothing is shared."""

    def work(i: int) -> int:
        student, teacher = (
            int(calculate_workload(sum(map(len, read[i])))) for read in (readers.student, *readers.teachers)
        )
        return WITH_GRADIENT * student + teacher

    return max(sum(map(work, rows)) for rows in ranks)


def measured(case: Case) -> dict[str, object]:
    readers = drawn(case)
    everything = range(case.prompts * case.group)
    ranks = balanced(readers, everything, case.ranks, equal=True)
    order = [i for rank in ranks for i in rank]
    groups = [i // case.group for i in order]
    chosen = [order[i] for i in best_order(readers.of(order), groups, case.rank_layout)]
    theirs, ours = verls_tokens(case, readers, ranks), own_tokens(case, readers, ranks)
    (together,) = case.rank_layout.parts(chosen)
    kept = own_tokens(case, readers, together)
    before = apart_work(readers, ranks)
    return {
        **asdict(case),
        "tokens": {
            who: {"verl": theirs[i].apart, "own ranks": ours[i].computed, "onpolicy": kept[i].computed}
            for i, who in enumerate(("student", "teacher"))
        },
        "saved": {
            who: {
                "verl's micro-batches, shared": round(1 - theirs[i].computed / theirs[i].apart, 4),
                "own ranks": round(1 - ours[i].computed / ours[i].apart, 4),
                "onpolicy": round(1 - kept[i].computed / kept[i].apart, 4),
            }
            for i, who in enumerate(("student", "teacher"))
        },
        "micro-batches of the fullest rank": {
            "verl": max(len(verls_micro_batches(case, readers, rows)) for rows in ranks),
            "onpolicy": max(len(readers.of(rows).cut(case.budget)) for rows in together),
        },
        "groups kept together": chosen != order,
        "slowest rank's work, of verl's": {
            "own ranks": round(step_work(readers, order, case.rank_layout) / before, 4),
            "onpolicy": round(step_work(readers, chosen, case.rank_layout) / before, 4),
        },
    }


if __name__ == "__main__":
    print(json.dumps([measured(case) for case in CASES], indent=1))
