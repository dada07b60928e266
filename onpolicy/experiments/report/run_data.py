"""What a page shows of run folders, and which of them are repetitions of one arm."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onpolicy.config.compare import fingerprint
from onpolicy.experiments.report.condition import condition_of, config_in, followed_lexicon, guard_of, in_domain
from onpolicy.experiments.report.curves import Columns
from onpolicy.experiments.report.samples import SampleIndex, some_samples
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.json_lines import read_json_lines

SEED = re.compile(r"seed-\d+")
MOST_ROLLOUTS = 12
"""Token-by-token rollouts taken from each run, spread over its steps."""
MOST_SAMPLES = 240
"""Samples in a page, of all its runs; and their characters."""
MOST_CHARACTERS = 2_000_000


def read_run(folder: Path, name: str, runs: int = 1) -> tuple[dict[str, Any], Columns, int]:
    """What a page shows of a run besides its curves, its metrics, and how many steps it logged.

    Args:
        folder: of the run
        name: to call it by
        runs: on the page, which share its room for samples

    Raises:
        ConfigError: the folder holds no run.
    """
    if not (folder / "metrics.jsonl").is_file():
        raise ConfigError(f"{str(folder)!r} holds no run: there is no metrics.jsonl in it{_inside(folder)}")
    rows = read_json_lines(folder / "metrics.jsonl")
    columns, text = Columns(rows), read_text(folder / "config.yaml")
    config, records = config_in(text), read_json_lines(folder / "tokens.jsonl")
    index = SampleIndex(folder)
    index.update()
    log = folder / "log.txt"
    guards = [found for line in log.read_bytes().splitlines() if (found := guard_of(line))] if log.is_file() else []
    shown = {
        "name": name,
        **settings_shown(text),
        "condition": condition_of(folder, columns.last_step, config, guards),
        "rollouts": records[:: max(1, -(-len(records) // MOST_ROLLOUTS))],
        "samples": some_samples(index, max(8, MOST_SAMPLES // runs), MOST_CHARACTERS // runs),
        "kept": sum(1 for _ in index.entries()),
    }
    return shown, columns, len(rows)


def settings_shown(text: str) -> dict[str, Any]:
    """What a page takes from a run's config."""
    config = config_in(text)
    return {"config": text, "followed": followed_lexicon(config), "in_domain": in_domain(config)}


def read_text(path: Path) -> str:
    """A file's text; empty where there is no such file, or it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _inside(folder: Path) -> str:
    inside = sorted(str(path.parent) for path in folder.glob("*/metrics.jsonl"))
    return f"; it holds runs: {', '.join(inside)}" if inside else ""


def arms_of(runs: Sequence[dict[str, Any]], arms: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """``name`` of each arm and the indices of its ``runs``; without ``arms``, runs whose configs differ only in the seed are one arm."""
    members: dict[str, list[int]] = {}
    for i, key in enumerate(arms or [_without_seed(run["config"], i) for i, run in enumerate(runs)]):
        members.setdefault(key, []).append(i)
    return [
        {"name": _with_seeds(key if arms else _common([runs[i]["name"] for i in own]), len(own)), "runs": own}
        for key, own in members.items()
    ]


def _without_seed(config: str, number: int) -> str:
    return fingerprint(config_in(config) or {"run": number}, ("seed", "run_dir"))


def _common(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    common = re.sub(r"[-_./]*(?:seed)?[-_=]*\d*$", "", os.path.commonprefix(names))  # noqa: RUF071 any common beginning
    return common or names[0]


def _with_seeds(name: str, seeds: int) -> str:
    return name if seeds == 1 else f"{name} ({seeds} seeds)"


def names_of(runs: Sequence[Path]) -> list[str]:
    """Folder names; where two would be the same, with as many folders above as tell them all apart.

    ``seed-0`` alone says nothing: a sweep's run has its arm and factor before it.
    """
    parts = [path.resolve().parts for path in runs]
    first = 3 if all(SEED.fullmatch(p[-1] if p else "") for p in parts) else 1
    for depth in range(first, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in runs]
