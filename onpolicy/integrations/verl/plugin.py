"""Registers our classes with verl, which imports this in each of its processes through the entry point ``verl.plugins``.

verl hides the error of a plug-in that does not load; here it is logged first, and ``onpolicy doctor verl`` shows it.
"""

from __future__ import annotations

import logging
from typing import Any

from onpolicy.integrations.verl.names import ESTIMATOR, MANAGER, MODE, VENDOR


def estimate_advantages(*arguments: Any, **named: Any) -> Any:
    """Stands in verl's registry under ``ESTIMATOR`` and is never called: our trainer writes the advantages itself.

    Raises:
        ValueError: another trainer than ours runs.
    """
    raise ValueError(
        f"algorithm.adv_estimator={ESTIMATOR} wants trainer.v1.trainer_mode=onpolicy; with another trainer use e.g. grpo"
    )


def register() -> None:
    """Registers our classes, once per process: verl's registries refuse a name that is taken."""
    from verl.experimental.reward_loop.reward_manager import register as register_reward_manager
    from verl.trainer.ppo.core_algos import register_adv_est
    from verl.trainer.ppo.v1 import trainer_base
    from verl.workers.engine.base import EngineRegistry

    from onpolicy.integrations.verl import environment_agent  # noqa: F401 registers itself
    from onpolicy.integrations.verl.engine import TeachingEngine
    from onpolicy.integrations.verl.reward_manager import OnpolicyRewardManager
    from onpolicy.integrations.verl.trainer import TRAINERS

    if MODE in trainer_base.TRAINER_REGISTRY:
        return
    for mode, trainer in TRAINERS.items():
        trainer_base.register_trainer(mode)(trainer)
    EngineRegistry.register("language_model", ["fsdp2"], ["cuda", "npu"], VENDOR)(TeachingEngine)
    register_adv_est(ESTIMATOR)(estimate_advantages)
    register_reward_manager(MANAGER)(OnpolicyRewardManager)


try:
    register()
except Exception:
    logging.getLogger(__name__).exception("onpolicy did not register with verl; its trainer mode will be unknown")
    raise
