"""Memory and time that a run will need on GPUs, computed from the config and the model's shape before anything is rented.

The time of a step is its floating-point operations at an assumed utilisation: 2 per parameter and token read, plus 4 x width for each
token that a layer attends to (half the length on average, at most its window); three times as many to train on it, four with gradient
checkpointing. The time of sampling is that of reading the weights and the keys and values once per token, at an assumed share of the
memory bandwidth. Grading and annotating rollouts takes one thread of the host while the GPUs wait, or less where processes do a part of it
while others are sampled (``distributed.num_annotation_workers``; 64 cores are assumed). Nothing was fitted to a GPU: expect a
factor of two. Memory: ``memory.py`` and ``host.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onpolicy.config.resolved import ResolvedConfig, Section
from onpolicy.experiments.forecast.hardware import GIB, Gpu, gpu_of
from onpolicy.experiments.forecast.host import checkpoint_bytes, copied_for_a_checkpoint, host_memory
from onpolicy.experiments.forecast.memory import (
    RESERVED,
    Memory,
    engine_sleeps,
    generator_bytes,
    generator_options,
    gpu_memory,
    gpus_of_their_own,
    refusals,
    tensor_parallel,
)
from onpolicy.experiments.forecast.passes import Load, passes, trainer_options
from onpolicy.experiments.forecast.shape import ModelShape
from onpolicy.run.placement import annotation_workers
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.trainer.forward_settings import settings_on

HOST_SECONDS_A_TOKEN = 3.9e-6
"""What grading and annotating take, on prose, with the telemetry that is on by default (docs/results/benchmarks/host.json)."""
DRIVER_SECONDS_A_TOKEN = 1.5e-6
"""What they take in the driver's process where others annotate."""
CORES = 64
"""Of a machine with GPUs."""


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
    ranks: int = 1
    """Of one machine, each with an engine of its own; those of Ray stand in the config."""
    eval_problems: int = 150
    """Of an evaluation set whose number the config does not say; AIME24, AIME25, AMC23 and MATH500 have 600 together."""


@dataclass(frozen=True)
class Forecast:
    memory: Memory
    """Of the GPUs."""
    host: Memory
    """Of the machine, if all ranks are on it: when -> part -> GiB."""
    disk: float
    """GiB of the checkpoints that are kept."""
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


def forecast(resolved: ResolvedConfig, shape: ModelShape, assumed: Assumptions) -> Forecast:
    """The forecast of a run; raises ConfigError for an unknown GPU."""
    gpu, roles = gpu_of(assumed.gpu), resolved.config.distributed
    apart = gpus_of_their_own(resolved)
    engines, ranks = (max(roles.num_generators, 1), max(roles.num_trainers, 1)) if apart else (assumed.ranks,) * 2
    each_engine = tensor_parallel(resolved)
    length = assumed.completion_tokens or resolved.generator.settings.max_tokens / 2
    longest = assumed.prompt_tokens + resolved.generator.settings.max_tokens
    load = Load(assumed.prompt_tokens, length, longest, ranks)
    memory = gpu_memory(resolved, shape, gpu, load)
    rollouts = resolved.data.settings.prompts_per_step * resolved.generator.settings.group_size
    rate = functools.partial(sampled_a_second, resolved, shape, gpu, assumed, length)
    compute = gpu.flops * assumed.utilisation * ranks
    seconds = {"sample": rollouts * length / (engines * rate(rollouts / engines))} | {
        what: flops / compute for what, flops in step_flops(resolved, shape, assumed, rollouts, length).items()
    }
    seconds["grade and annotate"] = _on_the_host(resolved, at_once=not apart and ranks > 1) * rollouts * length
    size, number = checkpoint_bytes(resolved, shape, load)
    settings = resolved.config.eval
    times = 0 if not (settings.every and resolved.eval_sets) else math.ceil(resolved.config.steps / settings.every) + 1
    cap = settings.max_tokens or resolved.generator.settings.max_tokens
    answer = min(length, cap)
    problems = sum(_chosen(section) or assumed.eval_problems for section in resolved.eval_sets.values())
    answers = problems * settings.samples_per_problem
    evaluations = times * answers * answer / (engines * rate(answers / engines)) / 3600
    return Forecast(
        memory=memory,
        host=host_memory(resolved, shape, load),
        disk=size * number / GIB,
        seconds=seconds,
        evaluation_hours=evaluations,
        hours=resolved.config.steps * sum(seconds.values()) / 3600 + evaluations,
        gpus=engines * each_engine + ranks if apart else max(engines * each_engine, ranks),
        notes=[
            f"{assumed.gpu}: {gpu.flops / 1e12:.0f} TFLOP/s, {gpu.bandwidth / 1e12:.2f} TB/s, {gpu.gib:.0f} GiB (data sheet)",
            f"{assumed.utilisation:.0%} of the FLOP/s to learn and to score, {assumed.bandwidth:.0%} of the bandwidth to sample",
            f"prompts of {assumed.prompt_tokens:.0f} tokens, answers of {length:.0f}; a teacher reads as much again as an answer",
            f"{times} evaluations of {problems} problems, {settings.samples_per_problem} answers of {answer:.0f} tokens each",
            f"checkpoints: {number} of {size / GIB:.1f} GiB on the disk",
            *_copied(copied_for_a_checkpoint(resolved, shape, load)),
            *_left_out(resolved, shape, load),
        ],
        refusals=list(refusals(memory, resolved, shape, gpu, load.prompt + load.completion)),
    )


def _on_the_host(resolved: ResolvedConfig, *, at_once: bool) -> float:
    """Seconds a token that GPUs wait for grading and annotation; ``at_once``: groups come when the last is sampled, as ranks bring them."""
    workers = annotation_workers(resolved, CORES)
    if not workers:
        return HOST_SECONDS_A_TOKEN
    return DRIVER_SECONDS_A_TOKEN + (HOST_SECONDS_A_TOKEN / workers if at_once else 0.0)


def _chosen(section: Section) -> int | None:
    """Problems of an evaluation set, as far as the config says."""
    numbers = (section.settings.problems, section.settings.coverage.problems)
    return min((n for n in numbers if n is not None), default=None)


def _copied(gib: float) -> Iterator[str]:
    if gib:
        yield f"training goes on while a checkpoint is written where a further {gib:.1f} GiB of host memory are free; otherwise it waits"


def _left_out(resolved: ResolvedConfig, shape: ModelShape, load: Load) -> Iterator[str]:
    if reason := passes(resolved, shape, load).unmeasured:
        yield f"activations by a formula, because the model does not run without values ({reason})"
    if engine_sleeps(resolved):
        yield "what an engine keeps while it sleeps is not counted"
    if shape.experts:
        yield "every expert counted as read for every token: too long for a mixture of experts"
    if teacher_rule(resolved).path:
        yield "another model as the teacher is counted as one of this size"
    if resolved.querying_plugins:
        yield "what contexts may ask the model is not counted"


def sampled_a_second(
    resolved: ResolvedConfig,
    shape: ModelShape,
    gpu: Gpu,
    assumed: Assumptions,
    length: float,
    answers: float,
) -> float:
    """Tokens per second of one engine: as many answers at a time as fit, each pass reading the weights and their keys and values."""
    options, engine = generator_options(resolved), tensor_parallel(resolved)
    room = generator_bytes(resolved, shape, gpu, assumed.prompt_tokens + length).get(RESERVED, math.inf)
    each = shape.kv_bytes(assumed.prompt_tokens + length / 2)
    most = float(options.get("max_num_seqs") or options.get("batch_size") or 1)
    at_once = max(min(room * engine / each, most, answers), 1.0)
    read = 2.0 * shape.parameters + at_once * each
    memory = read / (gpu.bandwidth * assumed.bandwidth * engine)
    compute = shape.flops(at_once, length) / (gpu.flops * assumed.utilisation * engine)
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
    again = 4.0 if settings_on("cuda", trainer_options(resolved)).gradient_checkpointing else 3.0
    return {"score": score, "learn": again * plain}
