"""Where each part of a run works: in this process, in the ranks of a launcher, or in Ray actors (``roles``)."""

from __future__ import annotations

from onpolicy.annotation.build import local_scorer
from onpolicy.annotation.scoring import Scorer
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.distributed.env import launched
from onpolicy.distributed.torchrun_group import Rank0Driver
from onpolicy.models import ModelHandle
from onpolicy.protocols import Generator, Trainer
from onpolicy.rollout.build import local_generator
from onpolicy.trainer.build import local_trainer
from onpolicy.utils.faults import Faults
from onpolicy.utils.timer import PhaseTimer


def build_scorer(resolved: ResolvedConfig, model: ModelHandle, faults: Faults | None = None) -> Scorer:
    """The scorer of a run; with ``distributed.num_reward_workers`` its rewards are computed by workers of their own."""
    scorer = local_scorer(resolved, model.renderer)
    if not resolved.config.distributed.num_reward_workers or not resolved.rewards:
        return scorer
    from onpolicy.distributed.reward_tasks import remote_scorer

    return remote_scorer(resolved, scorer, faults)


def build_generator(
    resolved: ResolvedConfig, model: ModelHandle, faults: Faults | None = None, *, beside_trainer: bool = False
) -> Generator:
    """The generator of a run, with the reference model's weights; with ``distributed.num_generators`` several replicas of it.

    Args:
        resolved: the config
        model: the student before training
        faults: records every replica that is replaced
        beside_trainer: whether one in this process shares its device with a trainer
    """
    if not resolved.config.distributed.num_generators:
        return local_generator(resolved, model, beside_trainer=beside_trainer)
    from onpolicy.distributed.generator_pool import GeneratorPool

    return GeneratorPool(resolved, model, faults)


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
