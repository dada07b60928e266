"""What must be true of a run that was harmed; from its files and from what was seen of its processes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

WARM_UP = 15
"""Steps of the run in a process's life that say nothing about growth: it loads, and fills its caches."""
ENOUGH = 12
"""Samples of one process, after its warm-up, below which growth is not judged."""
SHOWN = 5
"""Offenders named in a line."""
STORE = "Ray's objects"
"""The shared memory of the whole machine: where they lie, and what a process that read them shares with all others."""


@dataclass(frozen=True)
class Check:
    what: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Sample:
    """What one process held at one time."""

    at: float
    role: str
    life: str
    """The process: its id and when it began."""
    step: int
    """The highest that was logged by then."""
    memory_mib: float
    """What it alone holds."""
    handles: int


@dataclass(frozen=True)
class Trend:
    """How a number went over the life of a process."""

    first: float
    """Median of the first third."""
    last: float
    """Median of the last third."""
    per_minute: float
    """Slope of a straight line."""
    minutes: float
    samples: int

    @property
    def growth(self) -> float:
        return self.last - self.first


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON; one that cannot be read stands as an empty row."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            rows.append({})
    return rows


def steps_once(rows: Sequence[Mapping[str, Any]], steps: int) -> Check:
    """Every step has one line, and the lines are in order."""
    what, found = "every step is logged once and in order", [row.get("step") for row in rows]
    counts = Counter(found)
    wrong = _named("unreadable lines", [number for number, step in enumerate(found, 1) if step is None])
    wrong += _named("missing steps", [step for step in range(1, steps + 1) if not counts[step]])
    wrong += _named("steps logged more than once", [step for step, n in counts.items() if n > 1 and step is not None])
    wrong += _named("steps nobody asked for", [s for s in counts if s is not None and not 1 <= s <= steps])
    if not wrong and found != sorted(step for step in found if step is not None):
        wrong = ["the lines are not in order"]
    return Check(what, not wrong, "; ".join(wrong) or f"{steps} steps")


def prompts_once(rows: Sequence[Mapping[str, Any]], problems: Iterable[str], *, steps: int, per_step: int, group: int,
                 ) -> Check:  # fmt: skip
    """Every problem was trained once an epoch, with all of its rollouts.

    Args:
        rows: all rollouts of the steps that stand, each with ``step`` and ``prompt_id``
        problems: ids of all problems, a multiple of ``per_step``
    """
    what, ids = "every problem is trained once an epoch", list(problems)
    assert len(ids) % per_step == 0
    trained: dict[int, Counter[Any]] = defaultdict(Counter)
    for row in rows:
        if (step := row.get("step")) is not None:
            trained[step][row.get("prompt_id")] += 1
    per_epoch, wrong = len(ids) // per_step, []
    for epoch in range(-(-steps // per_epoch)):
        mine = range(epoch * per_epoch + 1, min((epoch + 1) * per_epoch, steps) + 1)
        counts = Counter(prompt for step in mine for prompt in trained[step])
        whole = len(mine) == per_epoch
        name = f"epoch {epoch + 1}:"
        wrong += _named(f"{name} never", [i for i in ids if not counts[i]] if whole else [])
        wrong += _named(f"{name} in several steps", [i for i in ids if counts[i] > 1])
        wrong += _named(f"{name} unknown", [i for i in counts if i not in set(ids)])
        wrong += _named(f"{name} steps without {per_step} problems", [s for s in mine if len(trained[s]) != per_step])
        odd = [f"{p} in step {s}" for s in mine for p, n in trained[s].items() if n != group]
        wrong += _named(f"{name} not {group} rollouts", odd)
    detail = "; ".join(wrong[:SHOWN]) or f"{len(ids)} problems, {steps * per_step / len(ids):g} epochs"
    return Check(what, not wrong, detail)


def staleness_bounded(rows: Sequence[Mapping[str, Any]], bound: int) -> Check:
    """No token was sampled with weights older than the bound."""
    ages = {row.get("step"): row.get("rollout/staleness/max") for row in rows}
    wrong = _named("not measured in steps", [step for step, age in ages.items() if age is None])
    wrong += _named(f"above {bound} in steps", [step for step, age in ages.items() if age is not None and age > bound])
    measured = [age for age in ages.values() if age is not None]
    return Check(
        "staleness within the bound",
        bool(ages) and not wrong,
        "; ".join(wrong) or f"at most {max(measured, default=0):g} of {bound}",
    )


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """Of pairs of seconds and value, at least three, in order."""
    times, values = [t for t, _ in points], [v for _, v in points]
    third = max(1, len(values) // 3)
    slope = float(np.polyfit(times, values, 1)[0]) * 60
    return Trend(median(values[:third]), median(values[-third:]), slope, (times[-1] - times[0]) / 60, len(values))


def longest_lives(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """By role, the samples of the process that was seen most, without its warm-up."""
    lives: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    began: dict[tuple[str, str], int] = {}
    for sample in samples:
        key = sample.role, sample.life
        if sample.step >= began.setdefault(key, sample.step) + WARM_UP:
            lives[key].append(sample)
    longest: dict[str, list[Sample]] = {}
    for (role, _), life in lives.items():
        if len(life) > len(longest.get(role, ())):
            longest[role] = life
    return longest


def flat(what: str, points: Sequence[tuple[float, float]], *, share: float, slack: float, unit: str) -> Check:
    """The last third is not above the first by more than ``share`` of it, or ``slack`` where that is more."""
    if len(points) < ENOUGH:
        return Check(what, True, f"not judged: no process was seen {ENOUGH} times after its first {WARM_UP} steps")
    found = trend(points)
    allowed = max(share * found.first, slack)
    detail = (
        f"{found.first:,.0f} to {found.last:,.0f} {unit}, {found.per_minute:+.2f} a minute, over {found.minutes:.1f} min; "
        f"{allowed:,.0f} more are allowed"
    )
    return Check(what, found.growth <= allowed, detail)


def nothing_grows(samples: Sequence[Sample]) -> list[Check]:
    """Memory of every role, file handles of the driver; of the process of each role that lived longest."""
    checks = []
    for role, life in longest_lives(samples).items():
        points = [(s.at, s.memory_mib) for s in life]
        checks.append(flat(f"memory of {role} stays", points, share=0.05, slack=64, unit="MiB"))
    handles = [(s.at, float(s.handles)) for s in longest_lives(samples).get("driver", ())]
    checks.append(flat("file handles of driver stay", handles, share=0.1, slack=16, unit="handles"))
    return checks


def _named(what: str, offenders: Sequence[Any]) -> list[str]:
    more = f" and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else ""
    return [f"{what} {', '.join(map(str, offenders[:SHOWN]))}{more}"] if offenders else []
