"""What a machine has to hold beside its GPUs: host memory, and the disk under checkpoints.

Bytes of N parameters, of which T are trained, with R ranks on the machine, rank 0 among them:

    while it loads                4N, whatever R, and 4N of another model as the teacher; on a CPU 4N of each copy
    while it trains               2N of an engine that sleeps (each of the GPUs' engines), the optimizer's moments that are on the host,
                                  what ZeRO offloads, and to write a checkpoint 2N in the engine's dtype and STREAMED a rank
    a checkpoint on the disk      2N, 4T, the moments, and 4N of a teacher that moves

Libraries and the data are not counted.
"""

from __future__ import annotations

import os
from pathlib import Path

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.experiments.forecast.hardware import GIB
from onpolicy.experiments.forecast.memory import (
    Memory,
    engine_sleeps,
    generator_options,
    gpus_of_their_own,
    tensor_parallel,
)
from onpolicy.experiments.forecast.passes import Load, passes
from onpolicy.experiments.forecast.shape import ModelShape
from onpolicy.experiments.forecast.trainer_memory import copies_of_the_model, moments_bytes
from onpolicy.experiments.forecast.zero import zero_of
from onpolicy.run.room import num_checkpoints
from onpolicy.trainer.build import teacher_rule
from onpolicy.utils.host_memory import CGROUPS

STREAMED = 1 * GIB
"""Bytes of a checkpoint that are on the host at one time where it is not copied there whole."""
CGROUP_LIMITS = tuple(Path(limit) for limit, _ in CGROUPS)
"""Where a container's limit stands, by version of cgroups."""


def host_memory(resolved: ResolvedConfig, shape: ModelShape, load: Load, *, here: int | None = None) -> Memory:
    """What a machine holds, in GiB.

    Args:
        resolved: the run
        shape: its model
        load: what a step brings
        here: ranks on this machine; None: all of them
    """
    ranks, zero, trained = here or load.ranks, zero_of(resolved), passes(resolved, shape, load).trained
    copies = sum(copies_of_the_model(resolved))
    # placed on a GPU, copies of the student share its weights until they are there
    beside = int(teacher_rule(resolved).path is not None) if load.device == "cuda" else copies
    # ranks hold one engine each, all of which sleep; those of Ray have GPUs of their own and do not
    asleep = (
        2.0 * shape.parameters * ranks / tensor_parallel(resolved)
        if engine_sleeps(resolved) and load.device == "cuda"
        else 0.0
    )
    offloaded = 4.0 * shape.parameters * (1 + copies) if "offload_param" in zero else 0.0
    if "offload_optimizer" in zero:  # gradients, the weights' copy, two moments
        offloaded += (4.0 + 4.0 + 8.0) * trained
    held = {
        "while it loads": {"weights in float32": 4.0 * shape.parameters * (1 + beside)},
        "while it trains": {
            "engine asleep": asleep,
            "moments on the host": moments_bytes(resolved, shape, trained)[1],
            "offloaded by ZeRO": offloaded * ranks / load.ranks,
            "to write a checkpoint": _model(resolved, shape) + STREAMED * ranks,
        },
    }
    return {when: {part: of / GIB for part, of in parts.items()} for when, parts in held.items()}


def copied_for_a_checkpoint(resolved: ResolvedConfig, shape: ModelShape, load: Load) -> float:
    """GiB of host memory with which a checkpoint of one process is written while training goes on; 0 under several ranks, which wait."""
    if load.ranks > 1 or gpus_of_their_own(resolved):
        return 0.0
    return _resumed_from(resolved, shape, load) / GIB


def checkpoint_bytes(resolved: ResolvedConfig, shape: ModelShape, load: Load) -> tuple[float, int]:
    """Bytes of one checkpoint on the disk, and how many there are at most: a new one is whole before an old one goes."""
    return _model(resolved, shape) + _resumed_from(resolved, shape, load), num_checkpoints(resolved.config)


def this_host() -> float:
    """GiB of this machine's memory, or of the container's where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CGROUP_LIMITS:
        if file.is_file() and (text := file.read_text().strip()).isdigit():  # max: none
            limits.append(int(text))
    return min(limits) / GIB


def _model(resolved: ResolvedConfig, shape: ModelShape) -> float:
    """Bytes of the model in the engine's dtype."""
    return (4.0 if generator_options(resolved).get("dtype") == "float32" else 2.0) * shape.parameters


def _resumed_from(resolved: ResolvedConfig, shape: ModelShape, load: Load) -> float:
    """Bytes of what a run needs beside the model to be resumed."""
    trained = passes(resolved, shape, load).trained
    moving = 4.0 * shape.parameters * (copies_of_the_model(resolved)[0] > 0)
    return 4.0 * trained + sum(moments_bytes(resolved, shape, trained)) + moving
