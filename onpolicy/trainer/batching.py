"""From the examples of an update to micro-batches on the device, under a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from onpolicy.trainer.collate import collate
from onpolicy.trainer.micro_batches import Row, micro_batches
from onpolicy.types import Example, TrainBatch

WINDOW_FACTOR = 16
"""Teachers read so many times the budget ahead of the student. Their hidden states exist for no more tokens at once, and most groups of
rollouts fit, so a prompt that they share is still read once."""


@dataclass
class Batching:
    """How examples are cut and collated; the cut never changes the gradient."""

    budget: int
    """Most tokens in a micro-batch; a longer rollout runs alone."""
    packed: bool
    """Whether a shared prompt counts once and nothing is padded."""
    contexts: Sequence[str]
    routes: Sequence[str]
    """Names of the loss terms."""
    spans: Sequence[str]
    device: torch.device

    def cut(self, examples: Sequence[Example]) -> list[list[int]]:
        """The examples' indices, each in one micro-batch."""
        return list(micro_batches(student_rows(examples), self.budget, packed=self.packed))

    def windows(self, examples: Sequence[Example]) -> list[list[list[int]]]:
        """The examples' indices by micro-batch, and the micro-batches by window; rollouts of one prompt in one window where they fit."""
        rows = student_rows(examples)
        found = []
        for window in micro_batches(rows, WINDOW_FACTOR * self.budget, packed=self.packed, together=True):
            own = [rows[i] for i in window]
            found.append([[window[i] for i in batch] for batch in micro_batches(own, self.budget, packed=self.packed)])
        return found

    def batches(self, examples: Sequence[Example]) -> Iterator[TrainBatch]:
        for indices in self.cut(examples):
            yield self.batch([examples[i] for i in indices])

    def batch(self, examples: Sequence[Example]) -> TrainBatch:
        """One micro-batch, collated in the order given, on the device."""
        batch = collate(examples, contexts=self.contexts, routes=self.routes, spans=self.spans)
        return TrainBatch(**{f.name: _moved(getattr(batch, f.name), self.device) for f in fields(batch)})

    def halve(self, examples: Sequence[Example]) -> bool:
        """Halves the budget; False if the longest example would still run in a micro-batch of the same size."""
        if self.budget <= max(map(num_tokens, examples)):
            return False
        self.budget >>= 1
        return True


def default_budget(device: torch.device) -> int:
    """On a CPU more tokens than fill the matrix products gain nothing, and no longer fit the cache."""
    return 1024 if device.type == "cpu" else 8192


def student_rows(examples: Sequence[Example]) -> list[Row]:
    """Prompt and completion as the student reads them."""
    return [(e.rollout.prompt_ids, e.rollout.completion_ids) for e in examples]


def num_tokens(example: Example) -> int:
    return len(example.rollout.prompt_ids) + len(example.rollout.completion_ids)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(inner, device) for name, inner in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
