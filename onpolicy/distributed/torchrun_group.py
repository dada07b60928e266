"""Ranks that torchrun or deepspeed started: rank 0 runs the training loop and broadcasts its calls, the others serve them.

Each rank has an engine of its own and samples its share. A rank that dies ends the job; the launcher starts it again
(``--max-restarts``) and the run continues from its last checkpoint.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.distributed.adapter_plan import adapter_plan
from onpolicy.distributed.env import world_size
from onpolicy.distributed.trainer_group import TrainerGroup, TrainerWorker
from onpolicy.models import ModelHandle, open_model
from onpolicy.protocols import Generator, OnGroup, ignore_group
from onpolicy.rollout.build import local_generator
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.process_group import leave_at_exit
from onpolicy.types import Prompt, RolloutGroup, Sampling
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.signals import STOPS
from onpolicy.utils.timer import PhaseTimer

if TYPE_CHECKING:
    from torch import Tensor

QUIT = "quit"


class Rank0Driver(TrainerGroup):
    """All ranks, called from rank 0."""

    def __init__(self, resolved: ResolvedConfig, model: ModelHandle, clock: PhaseTimer) -> None:
        super().__init__(resolved)
        refuse_staleness(resolved)
        self.worker = TrainerWorker(resolved, model, clock, size=world_size())
        refuse_other_generators(resolved, self.worker.trainer.collectives)
        self._in_step = True
        """Whether the others wait for the next call. After a call that failed on this rank they may not; the launcher ends them."""

    def call_all(self, method: str, *arguments: Any) -> Any:
        if not self._in_step:
            raise RuntimeError(
                f"{method}: a call before failed on rank 0 alone, so the other ranks do not wait for this one"
            )
        self._broadcast(method, *arguments)
        answer = self.worker.call(method, arguments)
        self._in_step = True
        return answer

    def restart(self) -> None:
        raise NotImplementedError("ranks of a launcher are restarted by the launcher, all together")

    def gather(self, adapter: bool) -> Iterator[tuple[str, Tensor]]:
        self._broadcast("join_weight_gather", adapter)
        yield from self.worker.gathered_weights(adapter)
        self._in_step = True

    def close(self) -> None:
        if self._in_step:
            self._broadcast(QUIT)
            leave_at_exit()

    def _broadcast(self, method: str, *arguments: Any) -> None:
        self._in_step = False
        broadcast_call((method, arguments))


class RankGenerators:
    """The generators of all ranks, with the interface of one ``Generator``."""

    def __init__(self, driver: Rank0Driver, own: Generator) -> None:
        self._driver, self._own = driver, own
        self.sampling, self.policy_version = own.sampling, own.policy_version
        driver.worker.generator = own

    @property
    def on_progress(self) -> Callable[[int, int, int], None]:
        return self._own.on_progress

    @on_progress.setter
    def on_progress(self, report: Callable[[int, int, int], None]) -> None:
        self._own.on_progress = report

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        sampling: Sampling | None = None,
        on_group: OnGroup = ignore_group,
    ) -> list[RolloutGroup]:
        """Each rank samples its share; this one has them all, and tells of them, when the last rank is done."""
        groups: list[RolloutGroup] = self._driver.call_all("generate", list(prompts), seed, sampling)
        for place, group in enumerate(groups):
            on_group(place, group)
        return groups

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Each rank takes them from its own trainer; ``weights`` is not read."""
        self._driver.call_all("update_generator", version)
        self.policy_version = version

    def rest(self) -> None:
        """On every rank: each shares its GPU with its trainer."""
        self._driver.call_all("generator.rest")

    def reset_version(self) -> None:
        self._driver.call_all("generator.reset_version")
        self.policy_version = self._own.policy_version

    def close(self) -> None:
        self._own.close()


def serve_rank(resolved: ResolvedConfig) -> int:
    """Runs rank 0's calls on another rank until rank 0 has finished; rank 0 handles signals for all. Returns the exit status."""

    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    refuse_staleness(resolved)
    model = open_model(resolved)
    worker = TrainerWorker(resolved, model, PhaseTimer(), size=world_size())
    refuse_other_generators(resolved, worker.trainer.collectives)
    if not resolved.config.distributed.num_generators:
        worker.generator = local_generator(
            resolved, model, beside_trainer=True, adapter=adapter_plan(resolved, model).shape
        )
    while True:
        method, arguments = broadcast_call(None)
        if method == QUIT:
            leave_at_exit()
            return 0
        worker.call(method, arguments)


def broadcast_call(call: tuple[str, tuple[Any, ...]] | None) -> tuple[str, tuple[Any, ...]]:
    """Method and arguments of rank 0's call, on every rank; the other ranks pass None."""
    import torch
    import torch.distributed as dist

    box: list[Any] = [call]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    method, arguments = box[0]
    return method, arguments


def refuse_staleness(resolved: ResolvedConfig) -> None:
    """Raises ConfigError if ranks would have to sample while they train."""
    if resolved.generator.settings.max_staleness and not resolved.config.distributed.num_generators:
        raise ConfigError(
            f"generator.max_staleness: {resolved.generator.settings.max_staleness} wants generators that sample while the ranks train; "
            "give them processes of their own (distributed.num_generators), or set it to 0"
        )


def refuse_other_generators(resolved: ResolvedConfig, ranks: SingleProcess) -> None:
    """Raises ConfigError, on every rank, if the ranks would sample with different generators, as ``auto`` may choose them."""
    if resolved.config.distributed.num_generators:
        return
    plugin = resolved.generator.plugin
    found = ranks.all_gather((plugin.name, plugin.with_reason))
    by_name: dict[str, str] = {}
    for rank, (name, said) in enumerate(found):
        by_name.setdefault(name, f"{said} on rank {rank}")
    if len(by_name) > 1:
        raise ConfigError(
            f"generator: got {' and '.join(by_name.values())}, expected the same on every rank; install the same packages "
            f"for all, or give its name, e.g. generator.name={found[0][0]}"
        )
