"""Which problems come next, for ever, and where to go on after a restart."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Sequence
from typing import Any

from onpolicy.data.errors import DataError
from onpolicy.types import Prompt


class PromptCursor:
    """Endless batches; each epoch holds each problem once, in an order decided by (seed, epoch) alone."""

    def __init__(self, prompts: Sequence[Prompt], *, batch_size: int, seed: int, shuffle: bool = True) -> None:
        self.prompts, self.batch_size, self.seed, self.shuffle = list(prompts), batch_size, seed, shuffle
        self.position = 0
        """Problems given out so far."""
        self._orders: dict[int, list[int]] = {}

    def next(self) -> list[Prompt]:
        batch = [self._at(self.position + i) for i in range(self.batch_size)]
        self.position += self.batch_size
        return batch

    def split_off(self) -> PromptCursor:
        """A cursor that gives the next batch, which this one passes over."""
        mine = copy.copy(self)
        self.position += self.batch_size
        return mine

    @property
    def epoch(self) -> float:
        return self.position / len(self.prompts)

    def state(self) -> dict[str, Any]:
        return {"position": self.position, "dataset": self._fingerprint()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where ``state`` was taken.

        Raises:
            DataError: the problems are not those of the saved run.
        """
        if state["dataset"] != self._fingerprint():
            raise DataError(
                "data: the problems differ from those of the saved run; resuming would train on others in another order"
            )
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

    def _fingerprint(self) -> str:
        return hashlib.sha256("\n".join(p.id for p in self.prompts).encode()).hexdigest()
