"""Memory and time that a run will need on GPUs, computed from the config and the model's shape before anything is rented.

Bytes of N parameters over R ranks, in float32 where nothing else is said (s is the ZeRO stage, 0 without DeepSpeed):

    weights 4N [/R if s = 3]   gradients 4N [/R if s >= 2]   moments 8N [/R if s >= 1]   ZeRO's own copy 4N/R [s >= 1]
    a teacher or reference model with weights of its own 4N [/R if s = 3]; 2 for each parameter of a linear layer or embedding if
        it never changes, its checkpoint and the passes are in bfloat16, and s < 3
    states that teachers left, in what the passes compute in: the tokens of a window of micro-batches, and of one of them joined, x hidden
        size, for each context that each teacher reads and for the reference model
    logits of a chunk of tokens 4 x tokens x vocabulary, for the student, each teacher and the reference model

The time of a step is its floating-point operations at an assumed utilisation: 2 per parameter and token read, plus 4 x width for each
token that a layer attends to (half the length on average, at most its window); three times as many to train on it, four with gradient
checkpointing. The time of sampling is that of reading the weights and the keys and values once per token, at an assumed share of the
memory bandwidth. Nothing was fitted to a GPU: expect a factor of two.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from onpolicy.config.registry import defaults_and, options_of
from onpolicy.config.resolved import ResolvedConfig, Section
from onpolicy.config.shipped import find_config
from onpolicy.trainer.batching import WINDOW_FACTOR
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.trainer.chunked_head import TOKENS_PER_CHUNK
from onpolicy.trainer.forward_settings import settings_on_gpu
from onpolicy.trainer.frozen_weights import roundable
from onpolicy.utils.errors import ConfigError, suggest

GIB = 2.0**30
RESERVED = "engine: keys and values"
"""What vLLM takes of a GPU whether a run needs it or not."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's numbers, from its data sheet."""

    flops: float
    """Dense bfloat16 operations per second."""
    bandwidth: float
    """Memory bandwidth, bytes per second."""
    gib: float


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(312e12, 2.0e12, 80),
    "h100": Gpu(989e12, 3.35e12, 80),
    "h200": Gpu(989e12, 4.8e12, 141),
    "b200": Gpu(2250e12, 8.0e12, 180),
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that decide its cost."""

    parameters: int
    layers: int
    hidden: int
    width: int
    """Attention heads times their size."""
    kv_width: int
    """Key-value heads times their size."""
    vocabulary: int
    windowed: int = 0
    """Layers that attend to the last ``window`` tokens only."""
    window: int = 0
    experts: bool = False
    """Whether it is a mixture of experts: a token passes through some of the parameters only."""
    rounded: int = 0
    """Parameters that a copy which never changes may keep in bfloat16, because the checkpoint does."""

    def kv_bytes(self, length: float) -> float:
        """Bytes of the keys and values of one sequence, in bfloat16."""
        full = self.layers - self.windowed
        return 2 * 2 * self.kv_width * (full * length + self.windowed * min(length, self.window))

    def flops(self, tokens: float, length: float) -> float:
        """Operations of one forward pass over ``tokens`` tokens in sequences of length ``length``."""
        near = min(length, self.window)
        attended = (self.layers - self.windowed) * length / 2 + self.windowed * (near - near**2 / (2 * length))
        return tokens * (2.0 * self.parameters + 4.0 * self.width * attended)


@dataclass(frozen=True)
class Assumptions:
    """What neither the config nor the model determines."""

    gpu: str = "h100"
    utilisation: float = 0.35
    """Share of the peak that training and scoring reach."""
    bandwidth: float = 0.5
    """Share of the memory's bandwidth that sampling reaches."""
    prompt_tokens: float = 200.0
    completion_tokens: float | None = None
    """Mean length of an answer; None: half of ``generator.max_tokens``."""
    eval_problems: int = 150
    """Of an evaluation set whose number the config does not say; AIME24, AIME25, AMC23 and MATH500 have 600 together."""


@dataclass(frozen=True)
class Forecast:
    memory: Mapping[str, Mapping[str, float]]
    """Kind of GPU (`a trainer's`, `a generator's`) -> part -> GiB."""
    seconds: Mapping[str, float]
    """Part of a step -> seconds."""
    evaluation_hours: float
    """All evaluations of the run."""
    hours: float
    gpus: int
    notes: list[str] = field(default_factory=list)
    """Its assumptions."""
    refusals: list[str] = field(default_factory=list)
    """Reasons why it cannot run."""


def shape_of(source: str, *, trust_remote_code: bool = False, revision: str | None = None) -> ModelShape:
    """The shape of a model, from its folder or hub id, or from a ``config.json``; no weights are read."""
    from onpolicy.models import skeleton

    model = skeleton(source, trust_remote_code=trust_remote_code, revision=revision)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    windowed = (getattr(config, "layer_types", None) or []).count("sliding_attention")
    in_bfloat16 = str(config.dtype) in ("bfloat16", "torch.bfloat16")
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        width=heads * size,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * size,
        vocabulary=config.vocab_size,
        windowed=windowed,
        window=config.sliding_window if windowed else 0,
        experts=any(hasattr(config, name) for name in ("num_experts", "num_local_experts", "n_routed_experts")),
        rounded=sum(p.numel() for p in roundable(model)) if in_bfloat16 else 0,
    )


def forecast(resolved: ResolvedConfig, shape: ModelShape, assumed: Assumptions) -> Forecast:
    """The forecast of a run; raises ConfigError for an unknown GPU."""
    if assumed.gpu not in GPUS:
        raise ConfigError(f"--gpu: got {assumed.gpu!r}, expected one of {', '.join(GPUS)}.{suggest(assumed.gpu, GPUS)}")
    gpu, roles = GPUS[assumed.gpu], resolved.config.distributed
    engines, ranks = max(roles.num_generators, 1), max(roles.num_trainers, 1)
    apart = bool(roles.num_generators) and bool(roles.num_trainers)
    tensor_parallel = int(_generator_options(resolved).get("tensor_parallel_size", 1))
    length = assumed.completion_tokens or resolved.generator.settings.max_tokens / 2
    whole = assumed.prompt_tokens + length
    trainer = {k: v / GIB for k, v in trainer_bytes(resolved, shape, ranks).items()}
    generator = {k: v / GIB for k, v in generator_bytes(resolved, shape, gpu, tensor_parallel, whole).items()}
    memory = {"a trainer's": trainer, "a generator's": generator} if apart else {"each": trainer | generator}
    rollouts = resolved.data.settings.prompts_per_step * resolved.generator.settings.group_size
    rate = functools.partial(sampled_a_second, resolved, shape, gpu, assumed, length, tensor_parallel)
    compute = gpu.flops * assumed.utilisation * ranks
    seconds = {"sample": rollouts * length / (engines * rate(rollouts / engines))} | {
        what: flops / compute for what, flops in step_flops(resolved, shape, assumed, rollouts, length).items()
    }
    settings = resolved.config.eval
    times = 0 if not (settings.every and resolved.eval_sets) else math.ceil(resolved.config.steps / settings.every) + 1
    cap = settings.max_tokens or resolved.generator.settings.max_tokens
    answer = min(length, cap)
    problems = sum(_chosen(section) or assumed.eval_problems for section in resolved.eval_sets.values())
    answers = problems * settings.samples_per_problem
    evaluations = times * answers * answer / (engines * rate(answers / engines)) / 3600
    return Forecast(
        memory=memory,
        seconds=seconds,
        evaluation_hours=evaluations,
        hours=resolved.config.steps * sum(seconds.values()) / 3600 + evaluations,
        gpus=engines * tensor_parallel + ranks if apart else max(engines * tensor_parallel, ranks),
        notes=[
            f"{assumed.gpu}: {gpu.flops / 1e12:.0f} TFLOP/s, {gpu.bandwidth / 1e12:.2f} TB/s, {gpu.gib:.0f} GiB (data sheet)",
            f"{assumed.utilisation:.0%} of the FLOP/s to learn and to score, {assumed.bandwidth:.0%} of the bandwidth to sample",
            f"prompts of {assumed.prompt_tokens:.0f} tokens, answers of {length:.0f}; a teacher reads as much again as an answer",
            f"{times} evaluations of {problems} problems, {settings.samples_per_problem} answers of {answer:.0f} tokens each",
            *_left_out(resolved, shape),
        ],
        refusals=_refusals(resolved, shape, gpu, assumed, length, tensor_parallel, memory),
    )


def _chosen(section: Section) -> int | None:
    """Problems of an evaluation set, as far as the config says."""
    numbers = (section.settings.problems, section.settings.coverage.problems)
    return min((n for n in numbers if n is not None), default=None)


def _left_out(resolved: ResolvedConfig, shape: ModelShape) -> Iterator[str]:
    if shape.experts:
        yield "every expert counted as read for every token: too long for a mixture of experts"
    if teacher_rule(resolved).path:
        yield "another model as the teacher is counted as one of this size"
    if resolved.querying_plugins:
        yield "what contexts may ask the model is not counted"


def _refusals(
    resolved: ResolvedConfig,
    shape: ModelShape,
    gpu: Gpu,
    assumed: Assumptions,
    length: float,
    tensor_parallel: int,
    memory: Mapping[str, Any],
) -> list[str]:
    found = [
        f"{kind} GPU would hold {total:.1f} GiB of {gpu.gib:.0f}"
        for kind, parts in memory.items()
        if (total := sum(parts.values())) > gpu.gib
    ]
    engine = generator_bytes(resolved, shape, gpu, tensor_parallel, assumed.prompt_tokens + length)
    if engine.get(RESERVED, math.inf) * tensor_parallel < shape.kv_bytes(assumed.prompt_tokens + length):
        found.append(
            f"generator.gpu_memory_utilization: of its share of {gpu.gib:.0f} GiB an engine has "
            f"{engine[RESERVED] / GIB:.1f} GiB left beside {engine['engine: weights'] / GIB:.1f} of weights, "
            "less than one answer's keys and values"
        )
    return found


def trainer_bytes(resolved: ResolvedConfig, shape: ModelShape, ranks: int) -> dict[str, float]:
    """Bytes on one rank: what stays, and what one micro-batch needs."""
    zero = zero_of(resolved)
    stage, n = int(zero.get("stage", 0)), 4.0 * shape.parameters
    sharded, learns = (n / ranks if stage >= 3 else n), _learning(resolved)
    on_gpu = 0.0 if "offload_param" in zero else 1.0
    moments_on_gpu = 0.0 if "offload_optimizer" in zero else 1.0
    updated, fixed = copies_of_the_model(resolved)
    forward = settings_on_gpu(resolved.trainer.plugin.options)
    tokens = resolved.trainer.settings.micro_batch_tokens or 8192
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


def generator_bytes(
    resolved: ResolvedConfig, shape: ModelShape, gpu: Gpu, tensor_parallel: int, length: float
) -> dict[str, float]:
    """Bytes of the engine: vLLM reserves a share of the GPU; a generator without such an option holds what its batch needs.

    Args:
        resolved: the run
        shape: its model
        gpu: the kind of GPU
        tensor_parallel: GPUs per engine
        length: tokens of a prompt and its answer
    """
    options = _generator_options(resolved)
    if "gpu_memory_utilization" in options:
        weights = 2.0 * shape.parameters / tensor_parallel
        reserved = float(options["gpu_memory_utilization"]) * gpu.gib * GIB
        return {"engine: weights": weights, RESERVED: max(reserved - weights, 0.0)}
    each = 4.0 if options.get("dtype") == "float32" else 2.0
    return {
        "engine: weights": each * shape.parameters,
        "keys and values of a batch": float(options.get("batch_size", 1)) * shape.kv_bytes(length) * each / 2,
    }


def _generator_options(resolved: ResolvedConfig) -> dict[str, Any]:
    plugin = resolved.generator.plugin
    return dict(defaults_and(plugin.function, plugin.options))


def sampled_a_second(
    resolved: ResolvedConfig,
    shape: ModelShape,
    gpu: Gpu,
    assumed: Assumptions,
    length: float,
    tensor_parallel: int,
    answers: float,
) -> float:
    """Tokens per second of one engine: as many answers at a time as fit, each pass reading the weights and their keys and values."""
    options = _generator_options(resolved)
    room = generator_bytes(resolved, shape, gpu, tensor_parallel, assumed.prompt_tokens + length).get(
        RESERVED, math.inf
    )
    each = shape.kv_bytes(assumed.prompt_tokens + length / 2)
    most = float(options.get("max_num_seqs") or options.get("batch_size") or 1)
    at_once = max(min(room * tensor_parallel / each, most, answers), 1.0)
    read = 2.0 * shape.parameters + at_once * each
    memory = read / (gpu.bandwidth * assumed.bandwidth * tensor_parallel)
    compute = shape.flops(at_once, length) / (gpu.flops * assumed.utilisation * tensor_parallel)
    return at_once / max(memory, compute)


def step_flops(
    resolved: ResolvedConfig, shape: ModelShape, assumed: Assumptions, rollouts: int, length: float
) -> dict[str, float]:
    """Operations for scoring and training on a step's rollouts; prompts that a group shares are read once."""
    prompts = resolved.data.settings.prompts_per_step * assumed.prompt_tokens
    plain = shape.flops(rollouts * length + prompts, assumed.prompt_tokens + length)
    privileged = shape.flops(rollouts * 2 * length + prompts, assumed.prompt_tokens + 2 * length)
    objective = build_objective(resolved)
    score = len(resolved.contexts) * privileged + (plain if objective.needs_ref else 0.0)
    score += plain if resolved.trainer.settings.updates_per_step > 1 else 0.0
    again = 4.0 if settings_on_gpu(resolved.trainer.plugin.options).gradient_checkpointing else 3.0
    return {"score": score, "learn": again * plain}
