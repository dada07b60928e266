"""Which sequences run together: micro-batches under a budget of tokens, with rows of one prompt next to each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

TokenIds = tuple[int, ...]
Row = tuple[TokenIds, TokenIds]
"""Prompt and completion, as a model reads them."""


class Tokens(Protocol):
    """Token ids, or what stands for them: equal where they are, and of their number."""

    def __len__(self) -> int: ...

    def __hash__(self) -> int: ...


AnyRow = tuple[Tokens, Tokens]
"""Prompt and completion, of which lengths count, and which prompts are equal."""


def micro_batches(rows: Sequence[AnyRow], budget: int, *, packed: bool, together: bool = False) -> Iterator[list[int]]:
    """Indices of the rows, each in one micro-batch; the longest first, so that memory runs out in the first micro-batch or never.

    Args:
        rows: those that one model reads
        budget: most tokens in a micro-batch; a longer row runs alone
        packed: whether a prompt counts once for all rows that share it, and nothing is padded
        together: whether one that has no room for all rows of the next prompt ends before them, unless no micro-batch has: so a prompt is
            read once where it can be, and micro-batches are less full
    """
    ordered = _ordered(rows, packed=packed)
    units = _by_prompt(rows, ordered, budget) if packed and together else ([i] for i in ordered)
    load: _Packed | _Padded = _Packed() if packed else _Padded()
    batch: list[int] = []
    for unit in units:
        own = [rows[i] for i in unit]
        if batch and load.with_(own) > budget:
            yield batch
            load, batch = type(load)(), []
        load.add(own)
        batch += unit
    if batch:
        yield batch


def _by_prompt(rows: Sequence[AnyRow], ordered: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows of one prompt together where the budget holds them, else each by itself."""
    for prompt, found in groupby(ordered, key=lambda i: rows[i][0]):
        group = list(found)
        whole = len(prompt) + sum(len(rows[i][1]) for i in group) <= budget
        yield from [group] if whole else ([i] for i in group)


def _ordered(rows: Sequence[AnyRow], *, packed: bool) -> list[int]:
    length = [len(prompt) + len(completion) for prompt, completion in rows]
    if not packed:
        return sorted(range(len(rows)), key=lambda i: -length[i])
    by_prompt: dict[Tokens, list[int]] = {}
    for i, (prompt, _) in enumerate(rows):
        by_prompt.setdefault(prompt, []).append(i)
    largest = sorted(by_prompt.values(), key=lambda group: -max(length[i] for i in group))
    return [i for group in largest for i in sorted(group, key=lambda i: -length[i])]


@dataclass
class _Packed:
    """Each prompt once, each completion once."""

    tokens: int = 0
    prompts: set[Tokens] = field(default_factory=set)

    def with_(self, rows: Sequence[AnyRow]) -> int:
        new = {prompt for prompt, _ in rows} - self.prompts
        return self.tokens + sum(map(len, new)) + sum(len(completion) for _, completion in rows)

    def add(self, rows: Sequence[AnyRow]) -> None:
        self.tokens = self.with_(rows)
        self.prompts |= {prompt for prompt, _ in rows}


@dataclass
class _Padded:
    """Every row as long as the longest prompt and the longest completion."""

    rows: int = 0
    prompt: int = 0
    completion: int = 0

    def with_(self, rows: Sequence[AnyRow]) -> int:
        prompt = max(self.prompt, *(len(prompt) for prompt, _ in rows))
        return (self.rows + len(rows)) * (prompt + max(self.completion, *(len(completion) for _, completion in rows)))

    def add(self, rows: Sequence[AnyRow]) -> None:
        self.rows += len(rows)
        self.prompt = max(self.prompt, *(len(prompt) for prompt, _ in rows))
        self.completion = max(self.completion, *(len(completion) for _, completion in rows))
