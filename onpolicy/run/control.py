"""What may change or stop a run between its steps: schedules, guards, and the user."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onpolicy.config.schedules import Coefficients
from onpolicy.config.schema import GuardSettings
from onpolicy.distributed.env import launched
from onpolicy.protocols import Trainer
from onpolicy.run.guards import Guards
from onpolicy.types import Metrics

SAME_REQUEST = 2.0
"""Seconds in which a rank takes a second request for the first: a scheduler's goes to every process, and a launcher hands its own on."""


@dataclass
class RunControl:
    """Sets scheduled numbers, does what guards ask for, and keeps the reason why a run is to stop."""

    coefficients: Coefficients
    guards: Guards
    trainer: Trainer
    note: Callable[[str], None]
    """Takes one line for the user."""
    asked_to_stop: bool = False
    """Whether the user wants the run to stop after this step."""
    stop_reason: str | None = None
    """Why the run stops after this step; empty where the user asked for it, None while it goes on."""
    _asked_at: float = 0.0

    def start_step(self, step: int, latest: Mapping[str, float]) -> None:
        """Sets what is scheduled for a step.

        Args:
            step: about to begin
            latest: the last logged value of every metric
        """
        self.coefficients.set(step, latest)

    def apply_guards(self, step: int, metrics: Metrics) -> None:
        """Asks every guard, tells the user of new alarms, and does what their settings say."""
        for reason, settings in self.guards.check(step, metrics):
            what = f"{settings.action} {settings.target}" if settings.action == "lower" else settings.action
            self.note(f"guard, step {step}: {reason}" + ("" if settings.action == "warn" else f" [{what}]"))
            self._act(settings, reason)

    def _act(self, settings: GuardSettings, reason: str) -> None:
        if settings.action == "stop":
            self.stop_reason = reason
        elif settings.action == "freeze_teacher":
            self.trainer.freeze_teacher()
        elif settings.action == "lower":
            assert settings.target is not None
            self.coefficients.lower(settings.target, settings.scale)

    def ask_to_stop(self) -> None:
        """The user's wish: the run stops after this step.

        Raises:
            KeyboardInterrupt: the user asks a second time.
        """
        if self.asked_to_stop:
            if launched() and time.monotonic() < self._asked_at + SAME_REQUEST:
                return
            raise KeyboardInterrupt
        self._asked_at = time.monotonic()
        self.asked_to_stop, self.stop_reason = True, self.stop_reason or ""
        self.note("stopping after this step, with a checkpoint; again to stop at once")

    def state(self) -> dict[str, Any]:
        return {"coefficients": self.coefficients.state(), "guards": self.guards.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.coefficients.load_state(state["coefficients"])
        self.guards.load_state(state["guards"])
