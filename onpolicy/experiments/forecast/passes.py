"""What the passes of a step hold in addition to weights, gradients and states: measured on fake tensors, else by a formula."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from onpolicy.config.registry import defaults_and
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.experiments.forecast.activations import (
    DeviceKind,
    NotMeasurable,
    PassBytes,
    PassSettings,
    Rows,
    TeacherHeads,
    head_pass,
    learning_pass,
    rows_of,
    scoring_pass,
)
from onpolicy.experiments.forecast.shape import ModelShape
from onpolicy.experiments.forecast.zero import zero_of
from onpolicy.trainer.batching import default_budget
from onpolicy.trainer.build import build_objective, teacher_rule
from onpolicy.trainer.chunked_head import TOKENS_PER_CHUNK
from onpolicy.trainer.forward_settings import ForwardSettings, settings_on
from onpolicy.trainer.trainer import NO_GRAPH_FACTOR
from onpolicy.types import REF

NUMBERS_A_LAYER = 34.0
"""By the formula, numbers that a layer keeps for the backward pass, per token and entry of the hidden state."""


@dataclass(frozen=True)
class Load:
    """What a step brings, and where it runs."""

    prompt: float
    """Tokens of a prompt, on average."""
    completion: float
    """Tokens of an answer, on average."""
    longest: float = 0.0
    """Tokens of the longest prompt and answer, which run alone where a micro-batch is shorter."""
    ranks: int = 1
    """Of the trainer."""
    device: DeviceKind = "cuda"


@dataclass(frozen=True)
class Passes:
    """Bytes in addition to what stays."""

    kept: float
    """For the backward pass of a micro-batch."""
    learning: float
    """At any time of a micro-batch, what is kept included."""
    scoring: float
    """At any time of a teacher's pass."""
    update: float
    """Temporaries of the optimizer."""
    trained: float
    """Numbers in the parameters that are trained."""
    unmeasured: str | None = None
    """Why the formula was needed."""


def passes(resolved: ResolvedConfig, shape: ModelShape, load: Load) -> Passes:
    """What the largest passes hold, on one rank."""
    tokens = micro_batch_tokens(resolved, load)
    rows = rows_of(int(tokens), int(load.prompt), int(load.completion))
    forward, stage = forward_on(resolved, shape, load), int(zero_of(resolved).get("stage", 0))
    head = _head(resolved, shape, forward, sum(completion for _, completion in rows), load.device)
    try:
        body, scoring = _measured(resolved, shape, load, rows)
        unmeasured = None
    except NotMeasurable as error:
        body, scoring = _by_formula(shape, forward, int(tokens))
        unmeasured = str(error)
    for_loop = load.device == "cpu" and not stage  # which makes two tensors of a parameter's size
    return Passes(
        kept=body.kept,
        learning=max(body.most, body.kept + head),
        scoring=scoring if resolved.contexts or build_objective(resolved).needs_ref else 0.0,
        update=8.0 * shape.vocabulary * shape.hidden if for_loop else 0.0,
        trained=body.trained if lora_rank(resolved) else shape.parameters,
        unmeasured=unmeasured,
    )


def micro_batch_tokens(resolved: ResolvedConfig, load: Load) -> float:
    """Tokens of the largest micro-batch: the budget, a longer row, or all of an update where that is less."""
    budget = float(resolved.trainer.settings.micro_batch_tokens or default_budget(torch.device(load.device)))
    rollouts, prompts = rollouts_in_update(resolved, load)
    return min(max(budget, load.longest), max(rollouts * load.completion + prompts * load.prompt, load.longest))


def rollouts_in_update(resolved: ResolvedConfig, load: Load) -> tuple[float, float]:
    """Rollouts and prompts of one rank in one update, at least one of each."""
    prompts = resolved.data.settings.prompts_per_step / load.ranks / resolved.trainer.settings.updates_per_step
    return max(prompts * resolved.generator.settings.group_size, 1.0), max(prompts, 1.0)


def forward_on(resolved: ResolvedConfig, shape: ModelShape, load: Load) -> ForwardSettings:
    """How the passes run there."""
    return settings_on(load.device, trainer_options(resolved), can_recompute=shape.recomputable)


def trainer_options(resolved: ResolvedConfig) -> dict[str, Any]:
    """The trainer's options, those that the config leaves out too."""
    plugin = resolved.trainer.plugin
    return dict(defaults_and(plugin.function, plugin.options))


def lora_rank(resolved: ResolvedConfig) -> int:
    """0: all weights are trained."""
    return int(trainer_options(resolved).get("lora_rank") or 0)


def _measured(resolved: ResolvedConfig, shape: ModelShape, load: Load, rows: Rows) -> tuple[PassBytes, float]:
    if shape.source is None:
        raise NotMeasurable("the model cannot be built from its sizes")
    forward, options = forward_on(resolved, shape, load), trainer_options(resolved)
    sharded, bfloat16 = int(zero_of(resolved).get("stage", 0)) >= 3, forward.precision == "bfloat16"
    targets = options.get("lora_targets")
    settings = PassSettings(
        model=shape.source,
        device=load.device,
        precision="bfloat16" if bfloat16 else "float32",
        recomputed=bool(forward.gradient_checkpointing),
        packed=shape.packable and forward.layout != "padded",
        lora_rank=lora_rank(resolved),
        lora_targets=None if targets is None else tuple(targets),
        rounded=bfloat16 and sharded,
    )
    # a teacher reads a prompt and as much again as an answer, in passes that hold several micro-batches
    rollouts, prompts = rollouts_in_update(resolved, load)
    informed = load.prompt + load.completion
    views = max(len(resolved.contexts), 1)
    read = min(
        NO_GRAPH_FACTOR * micro_batch_tokens(resolved, load),
        views * (rollouts * load.completion + prompts * informed),
    )
    teacher_rows = rows_of(int(read), int(informed), int(load.completion))
    fixed = shape.rounded > 0 and teacher_rule(resolved).update is None and teacher_rule(resolved).copies
    teacher = replace(
        settings, lora_rank=0, lora_targets=None, recomputed=False, rounded=bfloat16 and (sharded or fixed)
    )
    return learning_pass(settings, rows), scoring_pass(teacher, teacher_rows)


def _by_formula(shape: ModelShape, forward: ForwardSettings, tokens: int) -> tuple[PassBytes, float]:
    size = 2.0 if forward.precision == "bfloat16" else 4.0
    state, layer = tokens * shape.hidden * 4.0, tokens * shape.hidden * NUMBERS_A_LAYER * size / 2
    kept = state * shape.layers if forward.gradient_checkpointing else layer * shape.layers
    return PassBytes(int(kept), int(kept + layer), 0), 0.0


def _head(
    resolved: ResolvedConfig, shape: ModelShape, forward: ForwardSettings, tokens: int, device: DeviceKind
) -> float:
    """Bytes of the chunked head's passes; by a formula where they cannot run on fake tensors."""
    size = (shape.vocabulary, shape.hidden, tokens)
    trained, bfloat16 = not lora_rank(resolved), forward.precision == "bfloat16"
    heads = teacher_heads(resolved, shape, forward)
    key = repr((resolved.objective, heads, size, trained, bfloat16, device))
    if key not in _HEADS:
        try:
            _HEADS[key] = head_pass(
                build_objective(resolved), heads, size, trained=trained, bfloat16=bfloat16, device=device
            )
        except NotMeasurable:
            logits = 2 * (1 + len(heads.by_context)) * min(tokens, TOKENS_PER_CHUNK[device])
            _HEADS[key] = 4.0 * shape.vocabulary * (logits + shape.hidden * trained)
    return _HEADS[key]


_HEADS: dict[str, float] = {}
"""What has been measured: a refusal asks the same of many configs."""


def teacher_heads(resolved: ResolvedConfig, shape: ModelShape, forward: ForwardSettings) -> TeacherHeads:
    """Whose matrix each teacher's logits come from."""
    rule, adapters = teacher_rule(resolved), lora_rank(resolved)
    kept: Literal["float32", "bfloat16"] = (
        "bfloat16" if shape.rounded and forward.precision == "bfloat16" else "float32"
    )
    fixed: Literal["student", "float32", "bfloat16"] = "student" if adapters else kept
    teacher: Literal["student", "float32", "bfloat16"] = "student"
    if rule.path is not None:
        teacher = kept
    elif rule.copies:
        teacher = fixed if rule.update is None else "float32"
    found: dict[str, Literal["student", "float32", "bfloat16"]] = dict.fromkeys(resolved.contexts, teacher)
    if build_objective(resolved).needs_ref:
        found[REF] = fixed
    return TeacherHeads(tuple(found.items()), rule.student_share or 0.0)
