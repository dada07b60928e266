"""A trainer of several ranks: the worker on each rank, and the group that calls all workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Coefficients
from onpolicy.distributed.env import launched
from onpolicy.models import ModelHandle
from onpolicy.trainer.build import local_trainer
from onpolicy.trainer.process_group import join_process_group
from onpolicy.trainer.student_weights import StudentWeights
from onpolicy.types import Example, Metrics, Prompt, RolloutGroup, Sampling
from onpolicy.utils.disk import os_error
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.timer import PhaseTimer

if TYPE_CHECKING:
    from torch import Tensor

    from onpolicy.protocols import Generator


class TrainerWorker:
    """One rank's trainer, and its generator where it samples too. Every call is made on all ranks at the same time."""

    def __init__(self, resolved: ResolvedConfig, model: ModelHandle, clock: PhaseTimer, *, size: int) -> None:
        """
        Args:
            model: the student before training
            clock: of this rank
            size: number of ranks

        Raises:
            ConfigError: the trainer runs in one process only.
        """
        if launched():  # before the model is loaded, once for all ranks
            join_process_group()
        self.clock, self.coefficients = clock, Coefficients(resolved.coefficients)
        self.trainer = local_trainer(resolved, model, clock)
        self.generator: Generator | None = None
        if self.trainer.collectives.size != size:
            raise ConfigError(
                f"trainer.name: {resolved.trainer.plugin.name!r} runs in one process, and there are {size} ranks; expected deepspeed"
            )

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        """Calls ``step``, ``trainer.state`` or any other method of this worker or of its parts."""
        return attrgetter(method)(self)(*arguments)

    def step(self, examples: Sequence[Example], values: Mapping[str, float]) -> Metrics:
        """
        Args:
            examples: of all ranks
            values: the scheduled numbers at this step
        """
        self.coefficients.load_values(values)
        return self.trainer.step(examples)

    def save(self, folder: Path) -> tuple[int | None, str] | None:
        """Writes this rank's part; returns why that failed, as errno and text: an error would end the rank, and the run can go on."""
        try:
            self.trainer.save(folder, at_once=True)
        except OSError as error:
            return error.errno, str(error)
        return None

    def join_weight_gather(self, adapter: bool) -> None:
        """Takes part in gathering the student's weights, or its adapters alone, on rank 0."""
        for _ in self.gathered_weights(adapter):
            pass

    def gathered_weights(self, adapter: bool) -> Iterable[tuple[str, Tensor]]:
        """Made on all ranks at the same time."""
        weights = self.trainer.weights()
        return weights.adapter() if adapter else weights

    def generate(self, prompts: Sequence[Prompt], seed: int, sampling: Sampling | None) -> list[RolloutGroup]:
        """Every rank samples its share; all ranks get all groups, in the order of the prompts."""
        assert self.generator is not None
        together = self.trainer.collectives
        own = prompts[together.rank :: together.size]
        groups = self.generator.generate(own, seed=seed, sampling=sampling) if own else []
        shares = together.all_gather(groups)
        return [shares[i % together.size][i // together.size] for i in range(len(prompts))]

    def update_generator(self, version: int) -> None:
        """Copies the student's weights into this rank's generator."""
        assert self.generator is not None
        self.generator.update_weights(self.trainer.weights(), version=version)


class TrainerGroup(ABC):
    """A ``Trainer`` whose every call is made on all ranks."""

    def weights(self) -> StudentWeights:
        """Nothing is gathered before it is asked for."""
        return StudentWeights(partial(self.gather, False), adapter=partial(self.gather, True))

    @abstractmethod
    def gather(self, adapter: bool) -> Iterable[tuple[str, Tensor]]:
        """Full tensors of the student, or its adapters alone, from all ranks."""

    def __init__(self, resolved: ResolvedConfig) -> None:
        self._coefficients = Coefficients(resolved.coefficients)

    @abstractmethod
    def call_all(self, method: str, *arguments: Any) -> Any:
        """``TrainerWorker.call`` on every rank; returns rank 0's answer."""

    def step(self, examples: Sequence[Example]) -> Metrics:
        metrics: Metrics = self.call_all("step", list(examples), self._coefficients.values())
        return metrics

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.call_all("trainer.apply", function, *arguments)

    def freeze_teacher(self) -> None:
        self.call_all("trainer.freeze_teacher")

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.call_all("trainer.state")
        return state

    def save(self, folder: Path) -> Callable[[], None]:
        """On every rank before this returns: only paths and outcomes pass through the driver."""
        problem = self.call_all("save", folder.absolute())
        if problem is not None:
            raise os_error(*problem)
        return lambda: None

    def load_state(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.call_all("trainer.load_state", folder.absolute(), dict(state))
