"""Collapse seen early: ``(step, metrics, memory, *, options) -> reason or None``, asked after every step.

``falls`` and ``rises`` compare a metric with the reference model's, where step 0 logs it (``epistemic.baseline``, evaluation), else with
its own first values, so they need no threshold of yours. What happens then is a guard's ``action``: ``warn`` says so, ``lower``
multiplies the number under ``lowers`` by ``factor``, ``freeze_teacher`` stops a moving teacher, ``stop`` saves and ends the run. To
raise the number again once the metric is back, let the schedule ``schmitt_gate`` stand for it instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onpolicy.config.resolve import Section
from onpolicy.config.schema import GuardSettings

Guard = Callable[[int, Mapping[str, float], dict[str, Any]], str | None]


def falls(
    step: int, metrics: Mapping[str, float], memory: dict[str, Any], *, metric: str, share: float = 0.4, warmup: int = 3
) -> str | None:
    """The metric fell below a share of its mean over the first steps that had it.

    Args:
        metric: its name, as logged
        share: of the mean over the warm-up
        warmup: steps that make the mean
    """
    level = _level(step, metrics, memory, metric, warmup)
    if level is None or metrics[metric] >= share * level:
        return None
    return f"{metric} fell from {level:.3g} to {metrics[metric]:.3g}, below {share:.0%} of where it began"


def rises(
    step: int, metrics: Mapping[str, float], memory: dict[str, Any], *, metric: str, by: float, warmup: int = 3
) -> str | None:
    """The metric rose by more than an amount over its mean over the first steps that had it.

    Args:
        metric: its name, as logged
        by: in the metric's own unit
        warmup: steps that make the mean
    """
    level = _level(step, metrics, memory, metric, warmup)
    if level is None or metrics[metric] <= level + by:
        return None
    return f"{metric} rose from {level:.3g} to {metrics[metric]:.3g}, by more than {by:g}"


def stays(
    step: int, metrics: Mapping[str, float], memory: dict[str, Any], *, metric: str, steps: int, over: float = 0.0
) -> str | None:
    """The metric was above a bound for so many steps in a row; said again after as many more.

    Args:
        metric: its name, as logged
        steps: in a row that had it
        over: the bound
    """
    if metric not in metrics:
        return None
    memory["row"] = memory.get("row", 0) + 1 if metrics[metric] > over else 0
    if memory["row"] < steps:
        return None
    memory["row"] = 0
    return f"{metric} was above {over:g} for {steps} steps in a row"


def _level(step: int, metrics: Mapping[str, float], memory: dict[str, Any], metric: str, warmup: int) -> float | None:
    """The reference model's value, or the warm-up mean, once it is known and the metric is there."""
    if metric not in metrics:
        return None
    seen = memory.get("seen", 0)
    if step == 0:
        memory |= {"level": metrics[metric], "seen": warmup}
    elif seen < warmup:
        memory["level"] = (memory.get("level", 0.0) * seen + metrics[metric]) / (seen + 1)
        memory["seen"] = seen + 1
        return None
    return float(memory["level"]) if step else None


@dataclass
class Watched:
    """One guard of a run."""

    key: str
    function: Guard
    settings: GuardSettings
    """What happens when it speaks."""
    metric: str | None = None
    """What it watches, if it is one metric."""
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Guards:
    """All guards of a run; part of its state."""

    items: Sequence[Watched]

    def check(self, step: int, metrics: Mapping[str, float]) -> list[tuple[str, GuardSettings]]:
        """Reasons of new alarms, and what is to be done: a guard that goes on complaining is heard once, until it has been quiet again."""
        alarms = []
        for guard in self.items:
            if guard.metric is not None and guard.metric not in metrics:
                continue  # not logged in this step: neither an alarm nor its end
            reason = guard.function(step, metrics, guard.memory)
            if reason and not guard.memory.get("said"):
                alarms.append((reason, guard.settings))
            guard.memory["said"] = bool(reason)
        return alarms

    def state(self) -> dict[str, Any]:
        return {guard.key: dict(guard.memory) for guard in self.items}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for guard in self.items:
            guard.memory.clear()
            guard.memory.update(state.get(guard.key, {}))


def build_guards(sections: Sequence[Section]) -> Guards:
    """The guards of a run, from their sections of the config."""
    return Guards(
        [Watched(s.plugin.key, s.plugin.bind(), s.settings, s.plugin.options.get("metric")) for s in sections]
    )
