"""Which rollouts run together: micro-batches under a budget of tokens, those that share a prompt side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onpolicy.types import Example

TokenIds = tuple[int, ...]
STUDENT = "<student>"


def micro_batches(examples: Sequence[Example], budget: int, *, packed: bool) -> Iterator[list[Example]]:
    """All examples, each once; the largest first, so that memory runs out in the first micro-batch or in none.

    Args:
        examples: of one optimizer update
        budget: most tokens in a micro-batch, the student's and its teachers' together; a rollout that has more runs alone
        packed: whether prompts count once for all rollouts that share them, and there is no padding
    """
    load: _Packed | _Padded = _Packed() if packed else _Padded()
    batch: list[Example] = []
    for example in _ordered(examples, packed=packed):
        if batch and load.with_(example) > budget:
            yield batch
            load, batch = type(load)(), []
        load.add(example)
        batch.append(example)
    if batch:
        yield batch


def _ordered(examples: Sequence[Example], *, packed: bool) -> list[Example]:
    if not packed:
        return sorted(examples, key=_length, reverse=True)
    groups: dict[TokenIds, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.rollout.prompt_ids, []).append(example)
    largest = sorted(groups.values(), key=lambda group: sum(map(_length, group)), reverse=True)
    return [
        e for group in largest for e in sorted(group, key=lambda e: (sorted(e.teacher_prompt_ids.items()), -_length(e)))
    ]


def _prompts(example: Example) -> Mapping[str, TokenIds]:
    return {STUDENT: example.rollout.prompt_ids, **example.teacher_prompt_ids}


def _length(example: Example) -> int:
    prompts = _prompts(example)
    return sum(map(len, prompts.values())) + len(prompts) * len(example.rollout.completion_ids)


@dataclass
class _Packed:
    """What a micro-batch computes: each prompt once, and each completion once for whoever reads it."""

    tokens: int = 0
    seen: set[tuple[str, TokenIds]] = field(default_factory=set)

    def with_(self, example: Example) -> int:
        prompts = _prompts(example)
        new = sum(len(ids) for who, ids in prompts.items() if (who, ids) not in self.seen)
        return self.tokens + new + len(prompts) * len(example.rollout.completion_ids)

    def add(self, example: Example) -> None:
        self.tokens = self.with_(example)
        self.seen.update(_prompts(example).items())


@dataclass
class _Padded:
    """What a micro-batch computes: for whoever reads it, every row as long as the longest prompt and the longest completion."""

    rows: dict[str, int] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    completion: int = 0

    def with_(self, example: Example) -> int:
        prompts = _prompts(example)
        completion = max(self.completion, len(example.rollout.completion_ids))
        return sum(
            (self.rows.get(who, 0) + int(who in prompts))
            * (max(self.widths.get(who, 0), len(prompts.get(who, ()))) + completion)
            for who in {*self.rows, *prompts}
        )

    def add(self, example: Example) -> None:
        self.completion = max(self.completion, len(example.rollout.completion_ids))
        for who, ids in _prompts(example).items():
            self.rows[who] = self.rows.get(who, 0) + 1
            self.widths[who] = max(self.widths.get(who, 0), len(ids))
