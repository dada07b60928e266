"""What one GPU holds, by arithmetic from the config and the model's shape.

Bytes of N parameters over R ranks, in float32 where nothing else is said (s is the ZeRO stage, 0 without DeepSpeed):

    weights 4N [/R if s = 3]   gradients 4N [/R if s >= 2]   moments 8N [/R if s >= 1]   ZeRO's own copy 4N/R [s >= 1]
    a teacher or reference model with weights of its own 4N [/R if s = 3]; 2 for each parameter of a linear layer or embedding if
        it never changes, its checkpoint and the passes are in bfloat16, and s < 3
    states that teachers left, in what the passes compute in: the tokens of a window of micro-batches, and of one of them joined, x hidden
        size, for each context that each teacher reads and for the reference model
    logits of a chunk of tokens 4 x tokens x vocabulary, for the student, each teacher and the reference model

An engine that shares its GPU with the trainer sleeps while the trainer works, so the two are never whole at the same time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from onpolicy.config.registry import defaults_and, options_of
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.shipped import find_config
from onpolicy.experiments.forecast.hardware import GIB, Gpu
from onpolicy.experiments.forecast.shape import ModelShape
from onpolicy.trainer.batching import WINDOW_FACTOR
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.trainer.chunked_head import TOKENS_PER_CHUNK
from onpolicy.trainer.forward_settings import settings_on_gpu

RESERVED = "engine: keys and values"
"""What vLLM takes of a GPU whether a run needs it or not."""
STAYING = ("weights", "moments", "ZeRO's copy", "teacher and reference model")
"""Parts of a trainer that are there while the generator samples."""
Memory = Mapping[str, Mapping[str, float]]
"""Kind of GPU, and what it does -> part -> GiB."""


def gpu_memory(
    resolved: ResolvedConfig, shape: ModelShape, gpu: Gpu, length: float, *, longest: float = 0.0, ranks: int = 1
) -> Memory:
    """What each kind of GPU of a run holds, in GiB.

    Args:
        resolved: the run
        shape: its model
        gpu: the kind of GPU
        length: tokens of a prompt and its answer, on average
        longest: tokens of the longest prompt and answer, which run alone where a micro-batch is shorter
        ranks: that a launcher has started; those of ``distributed.num_trainers`` are known from the config
    """
    roles = resolved.config.distributed
    trainer = trainer_bytes(resolved, shape, max(roles.num_trainers, ranks), longest)
    generator = generator_bytes(resolved, shape, gpu, length)
    staying = {part: held for part, held in trainer.items() if part in STAYING}
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


def trainer_bytes(resolved: ResolvedConfig, shape: ModelShape, ranks: int, longest: float = 0.0) -> dict[str, float]:
    """Bytes on one rank: what stays, and what one micro-batch needs, or a row of ``longest`` tokens."""
    zero = zero_of(resolved)
    stage, n = int(zero.get("stage", 0)), 4.0 * shape.parameters
    sharded, learns = (n / ranks if stage >= 3 else n), _learning(resolved)
    on_gpu = 0.0 if "offload_param" in zero else 1.0
    moments_on_gpu = 0.0 if "offload_optimizer" in zero else 1.0
    updated, fixed = copies_of_the_model(resolved)
    forward = settings_on_gpu(resolved.trainer.plugin.options)
    tokens = max(float(resolved.trainer.settings.micro_batch_tokens or 8192), longest)
    kept = 2.0 if forward.precision == "bfloat16" else 4.0
    layer = tokens * shape.hidden * 34.0 * kept / 2
    halved = 2.0 * shape.rounded if forward.precision == "bfloat16" and stage < 3 else 0.0
    needs_ref = build_objective(resolved).needs_ref
    heads = 1 + len(resolved.contexts) + needs_ref
    views = len(resolved.contexts) * (2 if teacher_rule(resolved).student_share else 1) + needs_ref
    return {
        "weights": sharded * on_gpu,
        "gradients": learns * (n / ranks if stage >= 2 else n),
        "moments": learns * 2 * (n / ranks if stage >= 1 else n) * moments_on_gpu,
        "ZeRO's copy": learns * (n / ranks if stage >= 1 else 0.0) * moments_on_gpu,
        "teacher and reference model": ((updated + fixed) * sharded - fixed * halved) * on_gpu,
        "gathered layers": 2 * n / shape.layers if stage >= 3 else 0.0,
        "activations": (
            tokens * shape.hidden * kept * shape.layers + layer
            if forward.gradient_checkpointing
            else layer * shape.layers
        ),
        "states that teachers left": views * (WINDOW_FACTOR + 1) * tokens * shape.hidden * kept,
        "logits of a chunk": 4.0 * heads * min(tokens, TOKENS_PER_CHUNK["cuda"]) * shape.vocabulary,
    }


def _learning(resolved: ResolvedConfig) -> float:
    """Fraction of the parameters that are trained; adapters are negligible."""
    return 0.0 if resolved.trainer.plugin.options.get("lora_rank") else 1.0


def copies_of_the_model(resolved: ResolvedConfig) -> tuple[int, int]:
    """Copies of the model in addition to the student: a teacher, and the reference model where it is a different one.

    Returns:
        those that are updated, or that a rule reads, and stay float32; those that never change
    """
    rule, starts = teacher_rule(resolved), build_objective(resolved).needs_ref
    updated, other = int(rule.copies and rule.update is not None), int(rule.path is not None)
    if resolved.trainer.plugin.options.get("lora_rank"):
        return updated, other
    unmoved = int(rule.copies and rule.update is None and rule.path is None)
    ref = int((starts or rule.reads_ref) and not unmoved)
    return updated + ref * rule.reads_ref, other + unmoved + ref * (not rule.reads_ref)


def zero_of(resolved: ResolvedConfig) -> dict[str, Any]:
    """DeepSpeed's ``zero_optimization`` section; empty without DeepSpeed."""
    plugin = resolved.trainer.plugin
    if "config" not in options_of(plugin.function):  # a trainer without DeepSpeed has no such option
        return {}
    path = plugin.options.get("config")
    found: dict[str, Any] = (
        json.loads(find_config(path, ".json").read_text()) if path else {"zero_optimization": {"stage": 2}}
    )
    return dict(found.get("zero_optimization", {}))


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
