"""Trainer and generator take turns: whatever the trainer computes, the generator rests first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onpolicy.protocols import Generator, Trainer, Weights
from onpolicy.types import Example, Metrics
from onpolicy.utils.timer import PhaseTimer


class ExclusiveTrainer:
    """A trainer that may have all of a device that it shares with the generator.

    Sampling needs no counterpart, because a generator that rests wakes when it is asked: so contexts and evaluations may sample at any
    time, and neither they nor the loop, preflight or the logs have to know who has the device.
    """

    def __init__(self, trainer: Trainer, generator: Generator, timer: PhaseTimer) -> None:
        """
        Args:
            trainer: on one rank or on many
            generator: what rests; where each rank has one, all of them at once
            timer: counts the time until the generator rests as part of the weight sync
        """
        self._trainer, self._generator, self._timer = trainer, generator, timer

    def step(self, examples: Sequence[Example]) -> Metrics:
        self._rest()
        return self._trainer.step(examples)

    def weights(self) -> Weights:
        """The generator that gets them need not rest: it is about to be woken."""
        return self._trainer.weights()

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._rest()
        return self._trainer.apply(function, *arguments)

    def restart(self) -> None:
        self._trainer.restart()

    def freeze_teacher(self) -> None:
        self._trainer.freeze_teacher()

    def state(self) -> dict[str, Any]:
        return self._trainer.state()

    def save(self, folder: Path) -> Callable[[], None]:
        """Copies tensor by tensor to the host, or writes it, which needs no room on the device."""
        return self._trainer.save(folder)

    def load_state(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Optimizers take their memory here when a run is resumed."""
        self._rest()
        self._trainer.load_state(folder, state)

    def close(self) -> None:
        self._trainer.close()

    def _rest(self) -> None:
        start = time.perf_counter()
        self._generator.rest()
        self._timer.absorb({"sync": time.perf_counter() - start})
