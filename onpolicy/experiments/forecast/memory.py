"""What one GPU holds: the trainer's parts (``trainer_memory.py``) and the engine's.

An engine that shares its GPU with the trainer sleeps while the trainer works, so the two are never whole at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from onpolicy.config.registry import defaults_and, options_of
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.experiments.forecast.hardware import GIB, Gpu
from onpolicy.experiments.forecast.passes import Load
from onpolicy.experiments.forecast.shape import ModelShape
from onpolicy.experiments.forecast.trainer_memory import STAYING, STAYING_UNDER_ZERO_3, trainer_bytes
from onpolicy.experiments.forecast.zero import zero_of

RESERVED = "engine: keys and values"
"""What vLLM takes of a GPU whether a run needs it or not."""
Memory = Mapping[str, Mapping[str, float]]
"""Kind of GPU, and what it does -> part -> GiB."""


def gpu_memory(resolved: ResolvedConfig, shape: ModelShape, gpu: Gpu, load: Load) -> Memory:
    """What each kind of GPU of a run holds, in GiB.

    Args:
        resolved: the run
        shape: its model
        gpu: the kind of GPU
        load: what a step brings
    """
    trainer = trainer_bytes(resolved, shape, load)
    generator = generator_bytes(resolved, shape, gpu, load.prompt + load.completion)
    stay = STAYING + (STAYING_UNDER_ZERO_3 if int(zero_of(resolved).get("stage", 0)) >= 3 else ())
    staying = {part: held for part, held in trainer.items() if part in stay}
    if gpus_of_their_own(resolved):
        held = {"a trainer's GPU": trainer, "a generator's GPU": generator}
    elif engine_sleeps(resolved):
        held = {"each GPU, training": trainer, "each GPU, sampling": staying | generator}
    else:
        held = {"each GPU": trainer | generator}
    return {kind: {part: of / GIB for part, of in parts.items()} for kind, parts in held.items()}


def gpus_of_their_own(resolved: ResolvedConfig) -> bool:
    """Whether generators and trainers are Ray's, and share no GPU."""
    roles = resolved.config.distributed
    return bool(roles.num_generators or roles.num_trainers)


def engine_sleeps(resolved: ResolvedConfig) -> bool:
    """Whether the generator gives its memory back while the trainer works on the same GPU."""
    can = "beside_trainer" in options_of(resolved.generator.plugin.function)
    return can and not resolved.generator.settings.max_staleness and not gpus_of_their_own(resolved)


def refusals(memory: Memory, resolved: ResolvedConfig, shape: ModelShape, gpu: Gpu, length: float) -> Iterator[str]:
    """Why a run cannot fit."""
    for kind, parts in memory.items():
        if (total := sum(parts.values())) > gpu.gib:
            yield f"{kind} would hold {total:.1f} GiB of {gpu.gib:.0f}"
    engine = generator_bytes(resolved, shape, gpu, length)
    if engine.get(RESERVED, math.inf) * tensor_parallel(resolved) < shape.kv_bytes(length):
        yield (
            f"generator.gpu_memory_utilization: of its share of {gpu.gib:.0f} GiB an engine has "
            f"{engine[RESERVED] / GIB:.1f} GiB left beside {engine['engine: weights'] / GIB:.1f} of weights, "
            "less than one answer's keys and values"
        )


def tensor_parallel(resolved: ResolvedConfig) -> int:
    """GPUs of one engine."""
    return int(generator_options(resolved).get("tensor_parallel_size", 1))


def generator_bytes(resolved: ResolvedConfig, shape: ModelShape, gpu: Gpu, length: float) -> dict[str, float]:
    """Bytes of the engine: vLLM reserves a share of the GPU; a generator without such an option holds what its batch needs.

    Args:
        resolved: the run
        shape: its model
        gpu: the kind of GPU
        length: tokens of a prompt and its answer
    """
    options = generator_options(resolved)
    if "gpu_memory_utilization" in options:
        weights = 2.0 * shape.parameters / tensor_parallel(resolved)
        reserved = float(options["gpu_memory_utilization"]) * gpu.gib * GIB
        return {"engine: weights": weights, RESERVED: max(reserved - weights, 0.0)}
    each = 4.0 if options.get("dtype") == "float32" else 2.0
    return {
        "engine: weights": each * shape.parameters,
        "keys and values of a batch": float(options.get("batch_size", 1)) * shape.kv_bytes(length) * each / 2,
    }


def generator_options(resolved: ResolvedConfig) -> dict[str, Any]:
    """The generator's options, those that the config leaves out too."""
    plugin = resolved.generator.plugin
    return dict(defaults_and(plugin.function, plugin.options))
