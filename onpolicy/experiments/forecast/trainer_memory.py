"""What a trainer holds on one device, by arithmetic and by what its passes hold on fake tensors.

Bytes of N parameters over R ranks, in float32 where nothing else is said (s is the ZeRO stage, 0 without DeepSpeed):

    weights 4N [/R if s = 3]   gradients 4N [/R if s >= 2]   moments 8N [/R if s >= 1]   ZeRO's own copy 4N/R [s >= 1]
    moments in 8 bits 2N and a number of 4 bytes for each 256 of both, 8N of what is no matrix of a linear layer; on the host 0
    a teacher or reference model with weights of its own 4N [/R if s = 3]; 2 for each parameter of a linear layer or embedding if
        it never changes, its checkpoint and the passes are in bfloat16, and s < 3
    states that teachers left, in what the passes compute in: the tokens of a window of micro-batches, or of an update, and of one of them
        joined, x hidden size, for each context that each teacher reads and for the reference model

and on top of that whichever is most: a micro-batch of the student, a pass of a teacher, the optimizer's temporaries (``passes.py``). Under
adapters N counts them alone, but for the weights.
"""

from __future__ import annotations

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.experiments.forecast.passes import (
    Load,
    forward_on,
    lora_rank,
    micro_batch_tokens,
    passes,
    rollouts_in_update,
    trainer_options,
)
from onpolicy.experiments.forecast.shape import ModelShape
from onpolicy.experiments.forecast.zero import gathered_bytes, zero_buckets, zero_of
from onpolicy.trainer.batching import WINDOW_FACTOR
from onpolicy.trainer.build import build_objective, teacher_rule

STAYING = ("weights", "moments", "ZeRO's copy", "teacher and reference model")
"""Parts that are there while the generator samples."""
STAYING_UNDER_ZERO_3 = ("gradients", "buckets of gradients")
"""Further ones under ZeRO-3."""
SCALES = 8.0 / 256
"""Bytes of the two moments' scales per number, in 8 bits."""


def trainer_bytes(resolved: ResolvedConfig, shape: ModelShape, load: Load) -> dict[str, float]:
    """Bytes on one rank: what stays, and what the largest pass needs."""
    found = passes(resolved, shape, load)
    return steady_bytes(resolved, shape, load, found.trained) | largest(
        states=states_bytes(resolved, shape, load),
        activations=found.kept,
        learning=found.learning,
        scoring=found.scoring,
        update=found.update,
    )


def steady_bytes(resolved: ResolvedConfig, shape: ModelShape, load: Load, numbers: float) -> dict[str, float]:
    """Bytes on one rank for the whole of an update.

    Args:
        resolved: the run
        shape: its model
        load: what a step brings
        numbers: in the parameters that are trained
    """
    zero, ranks = zero_of(resolved), load.ranks
    stage, n, trained = int(zero.get("stage", 0)), 4.0 * shape.parameters, 4.0 * numbers
    bfloat16 = forward_on(resolved, shape, load).precision == "bfloat16"
    model = n + trained * bool(lora_rank(resolved))
    on_gpu, optimizer_on_gpu = float("offload_param" not in zero), float("offload_optimizer" not in zero)
    updated, fixed = copies_of_the_model(resolved)
    copy = n / ranks if stage >= 3 else n
    halved = 2.0 * shape.rounded if bfloat16 and stage < 3 else 0.0
    return {
        "weights": (model / ranks if stage >= 3 else model) * on_gpu,
        "gradients": (trained / ranks * optimizer_on_gpu) if stage >= 2 else trained,
        "moments": moments_bytes(resolved, shape, numbers)[0] / (ranks if stage >= 1 else 1) * optimizer_on_gpu,
        "ZeRO's copy": (trained / ranks if stage >= 1 else 0.0) * optimizer_on_gpu,
        "teacher and reference model": ((updated + fixed) * copy - fixed * halved) * on_gpu,
        "gathered weights": gathered_bytes(zero, shape, bfloat16=bfloat16),
        "buckets of gradients": zero_buckets(zero, bfloat16=bfloat16),
    }


def largest(*, states: float, activations: float, learning: float, scoring: float, update: float) -> dict[str, float]:
    """The parts of whichever holds most."""
    if update > states + max(learning, scoring):
        return {"temporaries of the optimizer": update}
    if scoring > learning:
        return {"states that teachers left": states, "temporaries of a teacher's pass": scoring}
    return {
        "states that teachers left": states,
        "activations": activations,
        "temporaries of a pass": learning - activations,
    }


def states_bytes(resolved: ResolvedConfig, shape: ModelShape, load: Load) -> float:
    """Bytes of the hidden states that teachers leave."""
    each = 2.0 if forward_on(resolved, shape, load).precision == "bfloat16" else 4.0
    needs_ref = build_objective(resolved).needs_ref
    views = len(resolved.contexts) * (2 if teacher_rule(resolved).student_share else 1) + needs_ref
    tokens = micro_batch_tokens(resolved, load)
    window = min(WINDOW_FACTOR * tokens, rollouts_in_update(resolved, load)[0] * load.completion)
    return views * (window + min(tokens, window)) * shape.hidden * each


def moments_bytes(resolved: ResolvedConfig, shape: ModelShape, trained: float) -> tuple[float, float]:
    """The optimizer's two moments, all ranks together: bytes on the GPU, and on the host.

    Args:
        resolved: the run
        shape: its model
        trained: numbers in the parameters that are trained
    """
    kept = trainer_options(resolved).get("moments", "float32")
    if kept == "host":
        return 0.0, 8.0 * trained
    if kept == "8bit":
        matrices = trained if lora_rank(resolved) else min(float(shape.matrices), trained)
        return (2.0 + SCALES) * matrices + 8.0 * (trained - matrices), 0.0
    return 8.0 * trained, 0.0


def copies_of_the_model(resolved: ResolvedConfig) -> tuple[int, int]:
    """Copies of the model in addition to the student: a teacher, and the reference model where it is a different one.

    Returns:
        those that are updated, or that a rule reads, and stay float32; those that never change
    """
    rule, starts = teacher_rule(resolved), build_objective(resolved).needs_ref
    updated, other = int(rule.copies and rule.update is not None), int(rule.path is not None)
    if lora_rank(resolved):
        return updated, other
    unmoved = int(rule.copies and rule.update is None and rule.path is None)
    ref = int((starts or rule.reads_ref) and not unmoved)
    return updated + ref * rule.reads_ref, other + unmoved + ref * (not rule.reads_ref)
