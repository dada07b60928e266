"""The name under ``algorithm.adv_estimator`` that leaves advantages to ``onpolicy.annotation.credit`` and to bonuses."""

from __future__ import annotations

from typing import Any

from onpolicy.integrations.verl.names import ESTIMATOR


def estimate(*arguments: Any, **named: Any) -> Any:
    """Never reached: the trainer has written them. verl only asks whether the name is known.

    Raises:
        ValueError: another trainer than ours runs.
    """
    raise ValueError(
        f"algorithm.adv_estimator={ESTIMATOR} wants trainer.v1.trainer_mode=onpolicy; with another trainer use e.g. grpo"
    )
