"""What verl imports in every one of its processes, through the entry point ``verl.plugins``: names for its registries.

verl hides the error of a plug-in that does not load; here it is logged first, and ``onpolicy doctor verl`` shows it.
"""

from __future__ import annotations

import logging

from onpolicy.integrations.verl.names import ESTIMATOR, MANAGER, MODE, VENDOR


def register() -> None:
    """Once a process; verl's registries refuse a name that is taken."""
    from verl.experimental.reward_loop.reward_manager import register as register_reward_manager
    from verl.trainer.ppo.core_algos import register_adv_est
    from verl.trainer.ppo.v1 import trainer_base
    from verl.workers.engine.base import EngineRegistry

    from onpolicy.integrations.verl.advantages import estimate
    from onpolicy.integrations.verl.engine import TeachingEngine
    from onpolicy.integrations.verl.reward_manager import OnpolicyRewardManager
    from onpolicy.integrations.verl.trainer import TRAINERS

    if MODE in trainer_base.TRAINER_REGISTRY:
        return
    for mode, trainer in TRAINERS.items():
        trainer_base.register_trainer(mode)(trainer)
    EngineRegistry.register("language_model", ["fsdp2"], ["cuda", "npu"], VENDOR)(TeachingEngine)
    register_adv_est(ESTIMATOR)(estimate)
    register_reward_manager(MANAGER)(OnpolicyRewardManager)


try:
    register()
except Exception:
    logging.getLogger(__name__).exception("onpolicy did not register with verl; its trainer mode will be unknown")
    raise
