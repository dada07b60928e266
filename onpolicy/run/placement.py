"""Where each part of a run works: in this process, in the ranks of a launcher, or in Ray actors (``roles``)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from onpolicy.annotation.build import group_work, local_scorer
from onpolicy.annotation.pooled_scorer import PooledScorer
from onpolicy.annotation.scoring import Scorer
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Coefficients
from onpolicy.data.rendering import Renderer
from onpolicy.distributed.env import launched
from onpolicy.distributed.torchrun_group import Rank0Driver
from onpolicy.models import ModelHandle
from onpolicy.protocols import AdapterShape, Generator, Trainer
from onpolicy.rollout.build import local_generator
from onpolicy.trainer.build import local_trainer
from onpolicy.utils.device import available_cores
from onpolicy.utils.faults import Faults
from onpolicy.utils.timer import PhaseTimer
from onpolicy.utils.worker_processes import WorkerProcesses

if TYPE_CHECKING:
    from onpolicy.distributed.direct_weights import DirectWeights

LARGE_STEP = 250_000
"""Tokens a step, if every rollout is as long as it may be, from which on processes annotate by default. At 3.9 us of one core a token these
are a second of the driver's time, as long as a process takes to start; below, no step is long enough to notice."""
CORES_A_WORKER = 4
"""A machine with fewer has none to spare."""
MOST_WORKERS = 8
"""They read two million tokens a second where answers are graded fast. Ranks that sample bring all groups of a step at once."""


def build_scorer(resolved: ResolvedConfig, model: ModelHandle, faults: Faults | None = None) -> Scorer:
    """The scorer of a run; with ``distributed.num_reward_workers`` its rewards are computed by workers of their own."""
    scorer = local_scorer(resolved, model.renderer)
    if not resolved.config.distributed.num_reward_workers or not resolved.rewards:
        return scorer
    from onpolicy.distributed.reward_tasks import remote_scorer

    return remote_scorer(resolved, scorer, faults)


def with_workers(scorer: Scorer, resolved: ResolvedConfig, renderer: Renderer, faults: Faults) -> Scorer:
    """The same scorer, with processes of this machine that take each group as soon as it is sampled, where they are worth their start."""
    count = annotation_workers(resolved, available_cores())
    return pooled_scorer(scorer, resolved, renderer, count, functools.partial(faults.record, "annotation"))


def pooled_scorer(
    scorer: Scorer, resolved: ResolvedConfig, renderer: Renderer, count: int, on_lost: Callable[[str], None]
) -> Scorer:
    """The same scorer with processes that are told of groups; the scorer itself where there are none, or nothing for them to do.

    Args:
        scorer: with all rewards
        resolved: the config
        renderer: the student's
        count: number of processes
        on_lost: called with what happened to one that died
    """
    in_ray = resolved.config.distributed.num_reward_workers > 0
    work = group_work(resolved, renderer, () if in_ray else scorer.rewards) if count else None
    if work is None:
        return scorer
    return PooledScorer(
        rewards=scorer.rewards,
        final_part=scorer.final_part,
        correctness=scorer.correctness,
        steps=scorer.steps,
        inner=scorer,
        processes=WorkerProcesses(work, count, on_lost),
        values=Coefficients(resolved.coefficients).values,
    )


def annotation_workers(resolved: ResolvedConfig, cores: int) -> int:
    """``distributed.num_annotation_workers``, or what it is by default with so many cores on this machine."""
    given = resolved.config.distributed.num_annotation_workers
    if given is not None:
        return given
    longest = resolved.data.settings.prompts_per_step * resolved.generator.settings.group_size
    longest *= resolved.generator.settings.max_tokens
    return min(MOST_WORKERS, cores // CORES_A_WORKER) if longest >= LARGE_STEP else 0


def build_generator(
    resolved: ResolvedConfig,
    model: ModelHandle,
    faults: Faults | None = None,
    *,
    beside_trainer: bool = False,
    adapter: AdapterShape | None = None,
    direct: DirectWeights | None = None,
) -> Generator:
    """The generator of a run, with the reference model's weights; with ``distributed.num_generators`` several replicas of it.

    Args:
        resolved: the config
        model: the student before training
        faults: records every replica that is replaced
        beside_trainer: whether one in this process shares its device with a trainer
        adapter: of the adapters that are all that it will be given of the student
        direct: the trainer's ranks, where they send weights to replicas by themselves
    """
    if not resolved.config.distributed.num_generators:
        return local_generator(resolved, model, beside_trainer=beside_trainer, adapter=adapter)
    from onpolicy.distributed.generator_pool import GeneratorPool

    return GeneratorPool(resolved, model, faults, adapter=adapter, direct=direct)


def direct_weights(
    trainer: Trainer, resolved: ResolvedConfig, say: Callable[[str], None], *, adapter: bool
) -> DirectWeights | None:
    """What sends weights from GPU to GPU, where the run has it; says which way they go, where replicas get them.

    Args:
        trainer: of the run
        resolved: the config
        say: takes a line
        adapter: whether adapters alone are sent
    """
    roles = resolved.config.distributed
    if not roles.num_generators:
        return None
    from onpolicy.distributed.direct_weights import DirectWeights
    from onpolicy.distributed.ray_trainer_group import RayTrainerGroup
    from onpolicy.distributed.weight_paths import said, why_in_store

    ranks = trainer if isinstance(trainer, RayTrainerGroup) else None
    why = why_in_store(resolved, ranks.place if ranks else None, adapter=adapter)
    say(said(why))
    return None if why or ranks is None else DirectWeights(ranks, timeout=roles.heartbeat_timeout_s, say=say)


def build_trainer(resolved: ResolvedConfig, model: ModelHandle, timer: PhaseTimer, faults: Faults) -> Trainer:
    """The trainer of a run: in this process, in ``distributed.num_trainers`` Ray actors, or in the ranks that a launcher started."""
    if resolved.config.distributed.num_trainers:
        from onpolicy.distributed.ray_trainer_group import RayTrainerGroup

        return RayTrainerGroup(resolved, timer, faults)
    if launched():
        return Rank0Driver(resolved, model, timer)
    trainer = local_trainer(resolved, model, timer)
    trainer.on_fault = faults.record
    return trainer
