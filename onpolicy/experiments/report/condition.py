"""How far a run is: the headline of a report, and of a view the whole time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from onpolicy.run.run_lock import in_use

GUARD = re.compile(rb"guard, step (\d+): (.+)")
"""How a run's log tells of a guard (``run/control.py``)."""
SOURCE = ("name", "path", "family", "subset")
"""Keys of a section of data that say where its problems come from."""


def condition_of(
    folder: Path, last_step: int | None, config: Mapping[str, Any], guards: Iterable[Any]
) -> dict[str, Any]:
    """``state``, ``step`` n of ``steps``, when it was last ``written``, and the first ``guard`` that fired.

    Args:
        folder: of the run
        last_step: that was logged; None: none was
        config: of the run
        guards: step and reason of each alarm, as they were said
    """
    steps = config.get("steps")
    steps = steps if isinstance(steps, int) and not isinstance(steps, bool) else None
    try:
        written: float | None = (folder / "metrics.jsonl").stat().st_mtime
    except OSError:
        written = None
    fired = [(step, reason) for step, reason in guards if last_step is not None and step <= last_step]
    return {
        "state": _state(folder, last_step, steps),
        "step": last_step,
        "steps": steps,
        "written": written,
        "guard": {"step": fired[0][0], "reason": fired[0][1], "more": len(fired) - 1} if fired else None,
    }


def _state(folder: Path, last_step: int | None, steps: int | None) -> str:
    if not folder.is_dir():
        return "gone"
    if last_step is not None and steps is not None and last_step >= steps:
        return "finished"
    under_way = in_use(folder)
    if under_way is None:
        return "unknown"
    if under_way:
        return "starting" if last_step is None else "running"
    return "waiting" if last_step is None else "stopped"


def guard_of(line: bytes) -> tuple[int, str] | None:
    """Step and reason, where a line of a run's log tells of a guard."""
    found = GUARD.match(line)
    return (int(found[1]), found[2].decode(errors="replace").strip()) if found else None


@lru_cache(maxsize=256)
def config_in(text: str) -> Mapping[str, Any]:
    """A run's config, read once; empty where it is none, e.g. while it is written."""
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return read if isinstance(read, dict) else {}


def in_domain(config: Mapping[str, Any]) -> list[str]:
    """The evaluation sets whose problems come from where the training problems do."""
    data, evaluation = config.get("data"), config.get("eval")
    sets = evaluation.get("sets") if isinstance(evaluation, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(sets, Mapping):
        return []
    source = {key: data.get(key) for key in SOURCE}
    return [
        str(name)
        for name, section in sets.items()
        if isinstance(section, Mapping) and {key: section.get(key) for key in SOURCE} == source
    ]


def followed_lexicon(config: Mapping[str, Any]) -> str:
    """The lexicon whose markers a run follows."""
    section = config.get("epistemic")
    return str((section.get("lexicon") if isinstance(section, Mapping) else None) or "self_doubt")
