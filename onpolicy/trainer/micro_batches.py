"""Which sequences run together: micro-batches under a budget of tokens, with rows of one prompt next to each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

TokenIds = tuple[int, ...]
Row = tuple[TokenIds, TokenIds]
"""Prompt and completion, as a model reads them."""


def micro_batches(rows: Sequence[Row], budget: int, *, packed: bool) -> Iterator[list[int]]:
    """Indices of the rows, each in one micro-batch; the longest first, so that memory runs out in the first micro-batch or never.

    Args:
        rows: those that one model reads
        budget: most tokens in a micro-batch; a longer row runs alone
        packed: whether a prompt counts once for all rows that share it, and nothing is padded
    """
    load: _Packed | _Padded = _Packed() if packed else _Padded()
    batch: list[int] = []
    for number in _ordered(rows, packed=packed):
        if batch and load.with_(rows[number]) > budget:
            yield batch
            load, batch = type(load)(), []
        load.add(rows[number])
        batch.append(number)
    if batch:
        yield batch


def _ordered(rows: Sequence[Row], *, packed: bool) -> list[int]:
    length = [len(prompt) + len(completion) for prompt, completion in rows]
    if not packed:
        return sorted(range(len(rows)), key=lambda i: -length[i])
    by_prompt: dict[TokenIds, list[int]] = {}
    for i, (prompt, _) in enumerate(rows):
        by_prompt.setdefault(prompt, []).append(i)
    largest = sorted(by_prompt.values(), key=lambda group: -max(length[i] for i in group))
    return [i for group in largest for i in sorted(group, key=lambda i: -length[i])]


@dataclass
class _Packed:
    """Each prompt once, each completion once."""

    tokens: int = 0
    prompts: set[TokenIds] = field(default_factory=set)

    def with_(self, row: Row) -> int:
        prompt, completion = row
        return self.tokens + len(completion) + (0 if prompt in self.prompts else len(prompt))

    def add(self, row: Row) -> None:
        self.tokens = self.with_(row)
        self.prompts.add(row[0])


@dataclass
class _Padded:
    """Every row as long as the longest prompt and the longest completion."""

    rows: int = 0
    prompt: int = 0
    completion: int = 0

    def with_(self, row: Row) -> int:
        return (self.rows + 1) * (max(self.prompt, len(row[0])) + max(self.completion, len(row[1])))

    def add(self, row: Row) -> None:
        self.rows += 1
        self.prompt, self.completion = max(self.prompt, len(row[0])), max(self.completion, len(row[1]))
