"""Which problems come next, for ever, and where to go on after a restart."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onpolicy.types import Prompt


class PromptCursor:
    """Endless batches; each epoch holds each problem once, in an order decided by (seed, epoch) alone."""

    def __init__(self, prompts: Sequence[Prompt], *, batch_size: int, seed: int, shuffle: bool = True) -> None:
        self.prompts, self.batch_size, self.seed, self.shuffle = list(prompts), batch_size, seed, shuffle
        self.position = 0
        """Problems given out so far."""
        self._orders: dict[int, list[int]] = {}

    def next(self) -> list[Prompt]:
        """The next batch; where it spans epochs it may hold a problem twice."""
        batch = [self._at(self.position + i) for i in range(self.batch_size)]
        self.position += self.batch_size
        return _numbered(batch)

    def split_off(self) -> PromptCursor:
        """A cursor that gives the next batch, which this one passes over."""
        mine = copy.copy(self)
        self.position += self.batch_size
        return mine

    @property
    def epoch(self) -> float:
        return self.position / len(self.prompts)

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken; that the problems are the same is ``onpolicy.run.inputs``'s to see."""
        self.position = state["position"]

    def _at(self, position: int) -> Prompt:
        epoch, index = divmod(position, len(self.prompts))
        return self.prompts[self._order(epoch)[index]]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(len(self.prompts)))
            if self.shuffle:
                random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._orders = {epoch: order}  # one epoch is kept; a batch that spans two makes each once
        return self._orders[epoch]


def _numbered(batch: Sequence[Prompt]) -> list[Prompt]:
    """A problem that is in the batch more than once knows its occurrence, so that its groups are sampled with other seeds."""
    seen: Counter[str] = Counter()
    found = []
    for prompt in batch:
        found.append(replace(prompt, occurrence=seen[prompt.id]) if seen[prompt.id] else prompt)
        seen[prompt.id] += 1
    return found
