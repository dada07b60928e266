"""A trainer of several ranks: what each of them can be asked to do, and the face that they have together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onpolicy.config.registry import ConfigError
from onpolicy.config.resolve import ResolvedConfig
from onpolicy.config.schedules import Coefficients
from onpolicy.models import ModelHandle
from onpolicy.trainer.build import local_trainer
from onpolicy.types import Example, Metrics, Prompt, RolloutGroup, Sampling
from onpolicy.utils.timer import PhaseTimer

if TYPE_CHECKING:
    from torch import Tensor

    from onpolicy.protocols import Generator


class TrainerWorker:
    """One rank's trainer, and its generator where it samples too. All ranks are asked the same at the same time."""

    def __init__(self, resolved: ResolvedConfig, model: ModelHandle, clock: PhaseTimer, *, size: int) -> None:
        """
        Args:
            plan: the run's
            model: the student before training
            clock: of this rank
            size: how many ranks there are

        Raises:
            ConfigError: the trainer knows nothing of ranks.
        """
        self.clock, self.coefficients = clock, Coefficients(resolved.coefficients)
        self.trainer = local_trainer(resolved, model, clock)
        self.generator: Generator | None = None
        if self.trainer.together.size != size:
            raise ConfigError(
                f"trainer.name: {resolved.trainer.plugin.name!r} runs in one process, and there are {size} ranks; wanted deepspeed"
            )

    def step(self, examples: Sequence[Example], numbers: Mapping[str, float]) -> Metrics:
        """
        Args:
            examples: of all ranks
            numbers: what is scheduled, as it is now
        """
        self.coefficients.load_values(numbers)
        return self.trainer.step(examples)

    def apply(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        return self.trainer.apply(function, *arguments)

    def freeze_teacher(self) -> None:
        self.trainer.freeze_teacher()

    def state(self) -> dict[str, Any] | None:
        """On rank 0; the others help to gather it."""
        state = self.trainer.state()
        return state if self.trainer.together.rank == 0 else None

    def load_state(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.trainer.load_state(weights, state)

    def drain(self) -> None:
        """Helps rank 0 to gather the student's weights."""
        for _ in self.trainer.weights():
            pass

    def generate(self, prompts: Sequence[Prompt], seed: int, sampling: Sampling | None) -> list[RolloutGroup]:
        """Every rank samples its share and has all of it in the end."""
        assert self.generator is not None
        together = self.trainer.together
        own = prompts[together.rank :: together.size]
        groups = self.generator.generate(own, seed=seed, sampling=sampling) if own else []
        shares = together.gathered(groups)
        return [shares[i % together.size][i // together.size] for i in range(len(prompts))]

    def sync(self, version: int) -> None:
        """The student's weights into the generator beside it."""
        assert self.generator is not None
        self.generator.update_weights(self.trainer.weights(), version=version)


class TrainerGroup(ABC):
    """A ``Trainer`` whose every call is made on all ranks."""

    def __init__(self, resolved: ResolvedConfig) -> None:
        self._coefficients = Coefficients(resolved.coefficients)

    @abstractmethod
    def everywhere(self, method: str, *arguments: Any) -> Any:
        """Calls a method of every ``TrainerWorker``; returns what rank 0 answers."""

    def step(self, examples: Sequence[Example]) -> Metrics:
        metrics: Metrics = self.everywhere("step", list(examples), self._coefficients.values())
        return metrics

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.everywhere("apply", function, arguments)

    def freeze_teacher(self) -> None:
        self.everywhere("freeze_teacher")

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.everywhere("state")
        return state

    def load_state(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.everywhere("load_state", dict(weights), dict(state))
