"""What cannot fit is refused before anything is loaded, with what would."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from onpolicy.config.load import ConfigSource, load
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import ALL_DEVICES
from onpolicy.distributed.env import world_size
from onpolicy.experiments.forecast.forecast import Assumptions
from onpolicy.experiments.forecast.hardware import GIB, Gpu
from onpolicy.experiments.forecast.host import host_memory, this_host
from onpolicy.experiments.forecast.memory import Memory, gpu_memory, gpus_of_their_own
from onpolicy.experiments.forecast.passes import Load, lora_rank
from onpolicy.experiments.forecast.shape import ModelShape, shape_of_model
from onpolicy.experiments.forecast.trainer_memory import steady_bytes
from onpolicy.run.devices import foreseen_ranks
from onpolicy.utils.errors import ConfigError, ModelError, UserError

REMEDIES = (
    "trainer.gradient_checkpointing=true",
    "trainer.precision=bfloat16",
    "trainer.micro_batch_tokens=2048",
    "generator.gpu_memory_utilization=0.3",
    "generator.gpu_memory_utilization=0.2",
    "trainer.moments=8bit",
    "trainer.moments=host",
    "trainer.lora_rank=64",
)
"""What takes less memory, the least of a change first."""
TOGETHER = 3
"""Most remedies that are tried at once."""
OURS = "onpolicy."
"""Module of the trainers and generators whose memory is known."""


def refuse_what_cannot_fit(source: ConfigSource, overrides: Sequence[str], ranks: int | None = None) -> None:
    """Holds a run to the memory of this machine and its GPU; does nothing without one. The forecast is a lower bound: what it refuses
    fails.

    Args:
        source: the config
        overrides: ``key=value``
        ranks: that are about to be started here; None: those that there are

    Raises:
        ConfigError: by the forecast a GPU, or the host, would have to hold more than it has; says with which overrides it would not.
    """
    gpu = this_gpu()
    if gpu is None:
        return
    resolved = _resolved(source, overrides)
    if resolved is None:  # the run's own check says all that is wrong
        return
    if not all(_of_ours(plugin.function) for plugin in (resolved.trainer.plugin, resolved.generator.plugin)):
        return
    try:
        shape = shape_of_model(resolved.config.model)
    except ModelError:
        return  # the run says so itself
    here = Here(ranks or world_size(), ranks or ranks_here())
    needed = _needed(resolved, shape, gpu, here)
    if not (problem := needed.problem(gpu.gib)):
        return
    fits = _on_all_devices(source, overrides, shape, gpu, here) or next(
        _that_fit(source, overrides, shape, gpu, here), None
    )
    remedy = (
        f"it would fit with {' '.join(fits)}" if fits else "no setting of ours would fit; more GPUs, or a smaller model"
    )
    raise ConfigError(
        f"model.path: {resolved.config.model.path!r} needs more than the {problem} GiB, by the forecast, which "
        f"is a lower bound; {remedy}. `onpolicy forecast` has the parts."
    )


@dataclass(frozen=True)
class Here:
    """Ranks of a run."""

    ranks: int
    on_this_machine: int


@dataclass(frozen=True)
class _Needed:
    """GiB by kind of GPU, and of the host by when."""

    gpu: dict[str, float]
    host: dict[str, float]

    def problem(self, gib: float) -> str | None:
        """What there is too little of; None where everything fits, on a GPU of so many GiB."""
        for has, what, needed in ((gib, "of this GPU", self.gpu), (this_host(), "of host memory", self.host)):
            if max(needed.values(), default=0.0) > has:
                return f"{has:.0f} GiB {what}: " + ", ".join(f"{kind} {held:.0f}" for kind, held in needed.items())
        return None


def this_gpu() -> Gpu | None:
    """Memory of the GPU on which this process would run; None without one."""
    if not torch.cuda.is_available():
        return None
    return Gpu(flops=1.0, bandwidth=1.0, gib=torch.cuda.get_device_properties(0).total_memory / GIB)


def ranks_here() -> int:
    """Ranks that a launcher has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def _of_ours(function: object) -> bool:
    return str(getattr(function, "__module__", "")).startswith(OURS)


def _load(resolved: ResolvedConfig, here: Here) -> Load:
    ranks = max(resolved.config.distributed.num_trainers, here.ranks)
    return Load(Assumptions.prompt_tokens, resolved.generator.settings.max_tokens / 2, ranks=ranks)


def _needed(resolved: ResolvedConfig, shape: ModelShape, gpu: Gpu, here: Here) -> _Needed:
    load = _load(resolved, here)
    # Ray may put its roles on any machine of a cluster
    host = {} if gpus_of_their_own(resolved) else host_memory(resolved, shape, load, here=here.on_this_machine)
    return _Needed(*(_sums(memory) for memory in (gpu_memory(resolved, shape, gpu, load), host)))


def _sums(memory: Memory) -> dict[str, float]:
    return {kind: sum(parts.values()) for kind, parts in memory.items()}


def _on_all_devices(
    source: ConfigSource, overrides: Sequence[str], shape: ModelShape, gpu: Gpu, here: Here
) -> Sequence[str] | None:
    """The override with which a run of one process fits this machine's GPUs together; None where it has one, or is too small."""
    there, override = torch.cuda.device_count(), f"trainer.devices={ALL_DEVICES}"
    if here.ranks > 1 or there < 2:
        return None
    try:
        given, _ = foreseen_ranks(source, [*overrides, override], there)
        resolved = resolve(load(source, given))
    except UserError:
        return None
    return [override] if _needed(resolved, shape, gpu, Here(there, there)).problem(gpu.gib) is None else None


def _that_fit(
    source: ConfigSource, overrides: Sequence[str], shape: ModelShape, gpu: Gpu, here: Here
) -> Iterator[Sequence[str]]:
    """Further overrides with which the run fits, the fewest first; a trainer without such an option has no use for them."""
    known = [remedy for remedy in REMEDIES if _resolved(source, [*overrides, remedy]) is not None]
    for number in range(1, TOGETHER + 1):
        for chosen in combinations(known, number):
            if len({remedy.partition("=")[0] for remedy in chosen}) < number:
                continue
            resolved = _resolved(source, [*overrides, *chosen])
            if resolved is None:
                continue
            numbers = 0.0 if lora_rank(resolved) else shape.parameters
            if sum(steady_bytes(resolved, shape, _load(resolved, here), numbers).values()) > gpu.gib * GIB:
                continue  # before its passes are measured
            if _needed(resolved, shape, gpu, here).problem(gpu.gib) is None:
                yield chosen


def _resolved(source: ConfigSource, overrides: Sequence[str]) -> ResolvedConfig | None:
    """None where an override is refused."""
    try:
        return resolve(load(source, overrides))
    except UserError:
        return None
