"""Ranks that torchrun or deepspeed started: the first runs the loop, the others do what it says.

Each rank has an engine of its own and samples its share. A rank that dies ends the job; the launcher starts it again
(``--max-restarts``) and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onpolicy.config.registry import ConfigError
from onpolicy.config.resolve import ResolvedConfig
from onpolicy.distributed.env import world_size
from onpolicy.distributed.trainer_group import TrainerGroup, TrainerWorker
from onpolicy.models import ModelHandle, open_model
from onpolicy.protocols import Generator
from onpolicy.rollout.build import local_generator
from onpolicy.types import Prompt, RolloutGroup, Sampling
from onpolicy.utils.timer import PhaseTimer

if TYPE_CHECKING:
    from torch import Tensor

QUIT = "quit"


class Rank0Driver(TrainerGroup):
    """All ranks, seen from the first."""

    def __init__(self, resolved: ResolvedConfig, model: ModelHandle, clock: PhaseTimer) -> None:
        super().__init__(resolved)
        refuse_staleness(resolved)
        self.work = TrainerWorker(resolved, model, clock, size=world_size())
        self._listening = True
        """Whether the others wait for the next order; where a call failed in between nobody knows, and the launcher ends them."""

    def everywhere(self, method: str, *arguments: Any) -> Any:
        self._tell(method, *arguments)
        answer = getattr(self.work, method)(*arguments)
        self._listening = True
        return answer

    def restart(self) -> None:
        raise NotImplementedError("a launcher starts its ranks again together")

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        self._tell("drain")
        yield from self.work.trainer.weights()
        self._listening = True

    def close(self) -> None:
        if self._listening:
            self._tell(QUIT)

    def _tell(self, method: str, *arguments: Any) -> None:
        self._listening = False
        tell((method, arguments))


class RankGenerators:
    """The generators of all ranks behind the face of one."""

    def __init__(self, leader: Rank0Driver, own: Generator) -> None:
        self._leader, self._own = leader, own
        self.sampling, self.policy_version = own.sampling, own.policy_version
        leader.work.generator = own

    @property
    def on_progress(self) -> Callable[[int, int], None]:
        return self._own.on_progress

    @on_progress.setter
    def on_progress(self, report: Callable[[int, int], None]) -> None:
        self._own.on_progress = report

    def generate(self, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling | None = None) -> list[RolloutGroup]:
        groups: list[RolloutGroup] = self._leader.everywhere("generate", list(prompts), seed, sampling)
        return groups

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Each rank's own trainer has them; ``weights`` is not looked at."""
        self._leader.everywhere("sync", version)
        self.policy_version = version

    def reset_version(self) -> None:
        raise NotImplementedError("a launcher starts its ranks again together")

    def close(self) -> None:
        self._own.close()


def follow(resolved: ResolvedConfig) -> int:
    """What a rank other than the first does until the first has finished; that one handles signals for all."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    refuse_staleness(resolved)
    model = open_model(resolved)
    work = TrainerWorker(resolved, model, PhaseTimer(), size=world_size())
    if not resolved.config.roles.generators:
        work.generator = local_generator(resolved, model)
    while True:
        method, arguments = tell(None)
        if method == QUIT:
            return 0
        getattr(work, method)(*arguments)


def tell(order: Any) -> Any:
    """Rank 0's order, on every rank."""
    import torch
    import torch.distributed as dist

    box = [order]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def refuse_staleness(resolved: ResolvedConfig) -> None:
    """Raises ConfigError where ranks would have to sample while they train."""
    if resolved.generator.settings.staleness and not resolved.config.roles.generators:
        raise ConfigError(
            f"generator.staleness: {resolved.generator.settings.staleness} wants generators that sample while the ranks train; "
            "give them processes of their own (roles.generators), or set it to 0"
        )
