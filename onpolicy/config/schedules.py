"""Coefficients that change during a run. Where an option is a number, a plug-in of kind ``schedule`` may stand instead:

    objective:
      - {name: distill, weight: {name: linear, initial: 0.5, final: 0.0, begin: 10, end: 40}, divergence: forward_kl}

A schedule is a function ``(step, metrics, memory, *, options) -> float``: the step about to run (from 1), the metrics of
the steps before it, and a dictionary of its own that is saved with every checkpoint. Plain functions of the step ignore
the other two; controllers read a metric and keep what they know in ``memory``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onpolicy.utils.errors import UserError

Schedule = Callable[[int, Mapping[str, float], dict[str, Any]], float]
Metrics = Mapping[str, float]


class ScheduleError(UserError, ValueError):
    """A schedule that cannot be followed; names its key."""


def constant(step: int, metrics: Metrics, memory: dict[str, Any], *, value: float) -> float:
    """The same number all the time, until a guard lowers it.

    Args:
        value: the number
    """
    return value


def linear(
    step: int, metrics: Metrics, memory: dict[str, Any], *, initial: float, final: float, end: int, begin: int = 0
) -> float:
    """``initial`` up to step ``begin``, then straight to ``final``, which holds from step ``end`` on.

    Args:
        initial: value at the beginning
        final: value at the end
        end: step from which the final value holds
        begin: last step of the initial value
    """
    done = min(max((step - begin) / max(end - begin, 1), 0.0), 1.0)
    return initial + (final - initial) * done


def trapezoid(
    step: int, metrics: Metrics, memory: dict[str, Any], *, value: float, rise: int, hold: int, fall: int
) -> float:
    """From 0 up to ``value`` in ``rise`` steps, there for ``hold`` steps, down to 0 in ``fall`` steps (SDPG, arXiv 2606.04036).

    Args:
        value: height
        rise: steps up
        hold: steps at the height
        fall: steps down
    """
    up = step / rise if rise else 1.0
    down = (rise + hold + fall - step) / fall if fall else float(step <= rise + hold)
    return value * min(max(min(up, down), 0.0), 1.0)


def phases(step: int, metrics: Metrics, memory: dict[str, Any], *, values: list[float], switch: list[int]) -> float:
    """The first value up to and with step ``switch[0]``, then the second, and so on.

    Args:
        values: one more than there are switches
        switch: last step of each value but the last, rising
    """
    if len(values) != len(switch) + 1 or sorted(switch) != list(switch):
        raise ScheduleError(f"phases: expected rising switch steps, one fewer than values; got {values} and {switch}")
    return values[sum(step > last for last in switch)]


def schmitt_gate(
    step: int,
    metrics: Metrics,
    memory: dict[str, Any],
    *,
    metric: str,
    value: float = 1.0,
    close: float = 0.93,
    reopen: float = 1.0,
    warmup: int = 5,
    open_in_warmup: bool = True,
) -> float:
    """``value`` while a metric keeps up, 0 once it falls below ``close`` of its warm-up mean, until it is back at ``reopen`` of it.

    Two thresholds, so that the gate does not flutter. AntiSD (arXiv 2605.11609) gates on the teacher's entropy with .93 and 1.

    Args:
        metric: name of the metric, as it is logged
        value: value while the gate is open
        close: share of the warm-up mean below which the gate closes
        reopen: share of the warm-up mean at which it opens again
        warmup: steps over which the mean is taken
        open_in_warmup: whether the gate is open meanwhile
    """
    if step > 1:
        seen = metrics[metric]
        if step - 1 <= warmup:
            memory["level"] = memory.get("level", 0.0) + (seen - memory.get("level", 0.0)) / (step - 1)
        else:
            threshold = close if memory.get("open", True) else reopen
            memory["open"] = seen >= threshold * memory["level"]
    is_open = memory.get("open", True) if step > warmup else open_in_warmup
    return value if is_open else 0.0


def dual_ascent(
    step: int,
    metrics: Metrics,
    memory: dict[str, Any],
    *,
    metric: str,
    rate: float,
    level: float | None = None,
    share: float | None = None,
    keep: Literal["above", "below"] = "above",
    initial: float = 0.0,
    maximum: float = math.inf,
) -> float:
    """lambda <- clip(lambda + rate (level - metric), 0, maximum): the multiplier of a constraint, 0 again once it holds.

    Args:
        metric: name of the metric, as it is logged
        rate: step size of the multiplier
        level: where the metric is to be held
        share: instead of `level`: that share of the metric's first value, the reference model's own where step 0 logs it
        keep: `above` holds the metric at or above the level, `below` at or below it
        initial: multiplier of the first step
        maximum: the multiplier does not exceed this
    """
    if (level is None) == (share is None):
        raise ScheduleError("dual_ascent: expected either a level or a share of the metric's first value")
    if metric in metrics:
        memory.setdefault("first", metrics[metric])
    if step > 1:
        seen = metrics[metric]
        level = share * memory["first"] if share is not None else level
        assert level is not None
        missing = level - seen if keep == "above" else seen - level
        memory["value"] = min(max(memory.get("value", initial) + rate * missing, 0.0), maximum)
    return float(memory.get("value", initial))


@dataclass
class Coefficient:
    """A scheduled number: read by whoever uses it, set once at the beginning of each step."""

    key: str
    """Where it stands in the config."""
    schedule: Schedule
    memory: dict[str, Any] = field(default_factory=dict)
    value: float = 0.0
    scale: float = 1.0
    """What a guard made of it."""

    def __post_init__(self) -> None:
        self.set(1, {})

    def __float__(self) -> float:
        return self.value

    def set(self, step: int, metrics: Metrics) -> None:
        """Raises ScheduleError if the schedule reads a metric that no step has logged."""
        try:
            self.value = self.scale * float(self.schedule(step, metrics, self.memory))
        except KeyError as error:
            raise ScheduleError(
                f"{self.key}: reads the metric {error.args[0]!r}, which no step has logged; there are: {', '.join(sorted(metrics))}"
            ) from None
        except ScheduleError as error:
            raise ScheduleError(f"{self.key}: {error}") from None


class Bound(functools.partial):  # type: ignore[type-arg]
    """A plug-in with its options; those that are scheduled are read at each call."""

    def __call__(self, /, *arguments: Any, **named: Any) -> Any:
        options = {name: float(v) if isinstance(v, Coefficient) else v for name, v in self.keywords.items()}
        return self.func(*self.args, *arguments, **(options | named))


def coefficients_in(value: Any) -> list[Coefficient]:
    """Every coefficient among a bound plug-in's options, however deeply nested."""
    if isinstance(value, Coefficient):
        return [value]
    inner: Iterable[Any] = value.keywords.values() if isinstance(value, functools.partial) else ()
    return [found for option in inner for found in coefficients_in(option)]


@dataclass(frozen=True)
class Coefficients:
    """All coefficients of a run; part of its state."""

    items: Sequence[Coefficient]

    def set(self, step: int, metrics: Metrics) -> None:
        for coefficient in self.items:
            coefficient.set(step, metrics)

    def lower(self, key: str | None, factor: float) -> None:
        """Multiplies the number under a key, from the next step on."""
        for coefficient in self.items:
            if coefficient.key == key:
                coefficient.scale *= factor

    def metrics(self) -> dict[str, float]:
        return {f"schedule/{key}": value for key, value in self.values().items()}

    def values(self) -> dict[str, float]:
        """Every number as it is now, by key: what other processes need to compute the same."""
        return {c.key: c.value for c in self.items}

    def load_values(self, values: Mapping[str, float]) -> None:
        """The inverse of ``values``, in another process."""
        for coefficient in self.items:
            coefficient.value = values[coefficient.key]

    def state(self) -> dict[str, Any]:
        return {c.key: {"memory": dict(c.memory), "scale": c.scale} for c in self.items}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for coefficient in self.items:
            coefficient.memory.clear()
            if coefficient.key in state:
                coefficient.memory.update(state[coefficient.key]["memory"])
                coefficient.scale = state[coefficient.key]["scale"]
