"""Which ranks get which rows of a step: groups stay together where all ranks are done earlier for it.

verl gives ranks about the same work, row by row. Rows that share a prompt then read it on several ranks, and on each once. Whole groups are
harder to balance, so both are tried with what would be computed, and the one whose slowest rank is done first is taken.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl.utils.seqlen_balancing import calculate_workload

from onpolicy.integrations.verl.shared_prompts import ROW_COST, Readers, Stretch
from onpolicy.trainer.micro_batches import AnyRow, Tokens
from onpolicy.types import REF, Example

WITH_GRADIENT = 3
"""Times the work of a pass that is only read: the backward pass is two more."""


@dataclass(frozen=True)
class StepLayout:
    """How verl takes a step's rows: each rank a stretch of them, and of that a part for every update."""

    number: int
    updates: int
    budget: int
    """Tokens of a micro-batch."""

    def parts(self, rows: Sequence[int]) -> list[list[Sequence[int]]]:
        """By update, the rows of each rank."""
        size = len(rows) // (self.number * self.updates)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [parts[update :: self.updates] for update in range(self.updates)]

    def order(self, parts: Sequence[list[int]]) -> list[int]:
        """The rows of ``number`` × ``updates`` parts, as ``parts`` takes them apart.

        Earlier parts hold the longest groups, so ranks begin with another one each.
        """
        found: list[int] = []
        for rank in range(self.number):
            own = parts[rank * self.updates : (rank + 1) * self.updates]
            for update in range(self.updates):
                found += own[(update + rank) % self.updates]
        return found


def step_layout(config: Any, rows: int) -> StepLayout:
    """As a config without sequence parallelism says.

    Args:
        rows: of a step
    """
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    update = actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    return StepLayout(
        number=trainer.nnodes * trainer.n_gpus_per_node,
        updates=1 if rows % update else rows // update,
        budget=actor.ppo_max_token_len_per_gpu,
    )


def readers_of(
    rows: Sequence[Mapping[str, Any]], examples: Sequence[Example | None], contexts: Sequence[str]
) -> Readers:
    """What is read of a step's rows, as the driver has them.

    Args:
        examples: one per row; None for one that verl made up
        contexts: of each pass of a teacher, or REF
    """
    stretch = _Stretches()
    answers = [Stretch(i, len(row["responses"])) for i, row in enumerate(rows)]
    student = [(stretch(tuple(row["prompts"].tolist())), answer) for row, answer in zip(rows, answers, strict=True)]

    def read(context: str, number: int, example: Example | None) -> AnyRow | None:
        if context == REF:
            return student[number]
        ids = example.teacher_prompt_ids.get(context) if example else None
        return None if ids is None else (stretch(ids), answers[number])

    return Readers(student, [[read(context, i, e) for i, e in enumerate(examples)] for context in contexts])


class _Stretches:
    """Token ids by number: equal ones get the same."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, ...], int] = {}

    def __call__(self, ids: tuple[int, ...]) -> Stretch:
        return Stretch(self._numbers.setdefault(ids, len(self._numbers)), len(ids))


def best_order(readers: Readers, groups: Sequence[Hashable], ranks: StepLayout) -> list[int]:
    """The numbers of all rows: as they are, or group by group.

    Args:
        groups: of each row, the group that it belongs to
    """
    given = list(range(len(groups)))
    grouped = ranks.order(_together(readers, groups, ranks))
    return min((given, grouped), key=lambda order: step_work(readers, order, ranks))


def step_work(readers: Readers, order: Sequence[int], ranks: StepLayout) -> int:
    """Of the slowest rank in each update, in the unit of verl's ``calculate_workload``."""
    return sum(max(_work(readers.of(rows), ranks.budget) for rows in update) for update in ranks.parts(order))


def _together(readers: Readers, groups: Sequence[Hashable], ranks: StepLayout) -> list[list[int]]:
    """By part of an update on a rank, rows; the largest group first to where least is to be done, whole if there is room anywhere."""
    by_group: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        by_group.setdefault(group, []).append(number)
    work = {group: _work(readers.of(rows), ranks.budget) for group, rows in by_group.items()}
    parts: list[list[int]] = [[] for _ in range(ranks.number * ranks.updates)]
    loads, size = [0.0] * len(parts), len(groups) // len(parts)
    for group in sorted(by_group, key=lambda group: -work[group]):
        left = by_group[group]
        while left:
            room = [size - len(part) for part in parts]
            open_parts = [i for i, free in enumerate(room) if free >= len(left)] or [
                i for i, free in enumerate(room) if free
            ]
            place = min(open_parts, key=lambda i: loads[i])
            own, left = left[: room[place]], left[room[place] :]
            parts[place] += own
            loads[place] += work[group] * len(own) / len(by_group[group])
    return parts


def _work(readers: Readers, budget: int) -> int:
    found = 0
    for rows in readers.cut(budget):
        student, *teachers = readers.passes(rows, budget)
        found += WITH_GRADIENT * sum(map(_pass_work, student))
        found += sum(_pass_work(own) for context in teachers for own in context)
    return found


def _pass_work(rows: Iterable[AnyRow]) -> int:
    """With each prompt once, where that pays; a completion sees its prompt."""
    prompts: set[Tokens] = set()
    shared = apart = 0
    for prompt, completion in rows:
        prompts.add(prompt)
        whole = calculate_workload(len(prompt) + len(completion))
        apart += whole
        shared += whole - calculate_workload(len(prompt)) + ROW_COST * calculate_workload(1)
    return min(apart, shared + sum(calculate_workload(len(prompt)) for prompt in prompts))
