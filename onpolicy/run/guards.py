"""Guards against collapse: ``(step, metrics, memory, *, options) -> reason or None``, called after every step.

``falls`` and ``rises`` compare a metric with its value under the reference model, where step 0 logs it (``epistemic.baseline``,
evaluation), else with its own first values, so that no threshold has to be chosen. A guard's ``action`` says what happens then:
``warn`` prints a warning, ``lower`` multiplies the number under ``target`` by ``scale``, ``freeze_teacher`` stops a moving teacher,
``stop`` saves and ends the run. To raise the number again once the metric has recovered, use the schedule ``schmitt_gate`` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from onpolicy.config.resolved import ResolvedConfig, Section
from onpolicy.config.schema import GuardSettings

GAP = "rollout/logprob_gap"
Guard = Callable[[int, Mapping[str, float], dict[str, Any]], str | None]


def falls(
    step: int,
    metrics: Mapping[str, float],
    memory: dict[str, Any],
    *,
    metric: str,
    below_fraction: float = 0.4,
    warmup: int = 3,
) -> str | None:
    """The metric fell below a fraction of its mean over the first steps that had it.

    It has recovered once it has made up for half of that: a metric that hovers about its threshold is one alarm.

    Args:
        metric: its name, as logged
        below_fraction: of the mean over the warm-up
        warmup: steps that make the mean
    """
    level = _level(step, metrics, memory, metric, warmup)
    if level is None:
        return None
    memory["fell"] = metrics[metric] < level * ((1.0 + below_fraction) / 2 if memory.get("fell") else below_fraction)
    if not memory["fell"]:
        return None
    return f"{metric} fell from {level:.3g} to {metrics[metric]:.3g}, below {below_fraction:.0%} of where it began"


def rises(
    step: int, metrics: Mapping[str, float], memory: dict[str, Any], *, metric: str, by: float, warmup: int = 3
) -> str | None:
    """The metric rose by more than an amount over its mean over the first steps that had it; it is back once half of that is gone.

    Args:
        metric: its name, as logged
        by: in the metric's own unit
        warmup: steps that make the mean
    """
    level = _level(step, metrics, memory, metric, warmup)
    if level is None:
        return None
    memory["rose"] = metrics[metric] > level + (by / 2 if memory.get("rose") else by)
    if not memory["rose"]:
        return None
    return f"{metric} rose from {level:.3g} to {metrics[metric]:.3g}, by more than {by:g}"


def stays(
    step: int, metrics: Mapping[str, float], memory: dict[str, Any], *, metric: str, steps: int, above: float = 0.0
) -> str | None:
    """The metric was above a bound for so many steps in a row; said again after as many more.

    Args:
        metric: its name, as logged
        steps: in a row that had it
        above: the bound
    """
    if metric not in metrics:
        return None
    memory["row"] = memory.get("row", 0) + 1 if metrics[metric] > above else 0
    if memory["row"] < steps:
        return None
    memory["row"] = 0
    return f"{metric} was above {above:g} for {steps} steps in a row"


def sync_failed(
    step: int, metrics: Mapping[str, float], memory: dict[str, Any], *, tolerance: float, steps: int = 3
) -> str | None:
    """Generator and trainer disagreed for some steps in a row: one step may be a policy whose tokens few others would have chosen.

    Said again after as many more, so that a run that goes on with the same fault stops again.

    Args:
        tolerance: nats per token
        steps: in a row
    """
    gap = metrics.get(GAP)
    if gap is None:
        return None
    memory["row"] = 0 if gap <= tolerance else memory.get("row", 0) + 1
    if memory["row"] < steps:
        return None
    memory["row"] = 0
    return (
        f"generator and trainer disagree by {gap:.4f} nats per token, and for {steps} steps by more than preflight.logprob_tolerance = "
        f"{tolerance}. Did a weight sync fail?"
    )


def _level(step: int, metrics: Mapping[str, float], memory: dict[str, Any], metric: str, warmup: int) -> float | None:
    """The reference model's value, or the mean over the warm-up; None while it is not known, or the metric was not logged."""
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
    """What happens when it raises an alarm."""
    metric: str | None = None
    """The metric that it watches, where it is a single one."""
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Guards:
    """All guards of a run; their memory is part of its state."""

    items: Sequence[Watched]

    def check(self, step: int, metrics: Mapping[str, float]) -> list[tuple[str, GuardSettings]]:
        """The new alarms, each with its reason and the guard's settings; an alarm that persists is reported once, until it ends."""
        alarms = []
        for guard in self.items:
            if guard.metric is not None and guard.metric not in metrics:
                continue  # not logged in this step: an alarm neither begins nor ends
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


def gap_tolerance(resolved: ResolvedConfig) -> float | None:
    """Nats per token by which generator and trainer may differ in a step; None where the policy's own change is part of the difference."""
    if resolved.generator.settings.max_staleness or resolved.data.settings.completions_column:
        return None
    return resolved.config.preflight.logprob_tolerance


def build_guards(sections: Sequence[Section], logprob_tolerance: float | None = None) -> Guards:
    """The guards of a run: those of its config, and the one that watches the weight sync.

    Args:
        sections: the config's
        logprob_tolerance: nats by which generator and trainer may differ; None: by any number
    """
    watched = [Watched(s.plugin.key, s.plugin.bind(), s.settings, s.plugin.options.get("metric")) for s in sections]
    if logprob_tolerance is not None:
        check = partial(sync_failed, tolerance=logprob_tolerance)
        watched.append(Watched("preflight.logprob_tolerance", check, GuardSettings(action="stop"), GAP))
    return Guards(watched)
