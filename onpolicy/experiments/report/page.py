"""Run folders -> one self-contained HTML file: no server, no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from onpolicy.config.compare import fingerprint
from onpolicy.experiments.report.curves import curves_of
from onpolicy.run.run_dir import logged
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.json_lines import read_json_lines

SAMPLE = ("step", "student_prompt", "completion", "answer", "reward", "finish_reason", "tokens")
TURNS = ("turns",)
"""Of rollouts that an environment answered."""
MOST_ROLLOUTS = 12
"""Token-by-token rollouts taken from each run, spread over its steps."""


def write_report(
    runs: Sequence[Path],
    output: Path,
    comparison: Mapping[str, Any] | None = None,
    arms: Sequence[str] | None = None,
    figures: str = "",
) -> dict[str, int]:
    """Writes the page; returns how many steps of each run it shows.

    Args:
        runs: folders
        output: the page
        comparison: what a sweep found (``SweepComparison.plain``), shown above the curves
        arms: the arm of each run, of which seeds are repetitions; None: as their configs say
        figures: drawings as SVG, shown with the comparison

    Raises:
        ConfigError: a folder holds no run.
    """
    data = [read_run(path, name) for path, name in zip(runs, names_of(runs), strict=True)]
    logs = [run.pop("metrics") for run in data]
    for run, curves in zip(data, curves_of(logs), strict=True):
        run["curves"] = curves
    here = files("onpolicy.experiments.report")
    page = (here / "page.html").read_text()
    script = (here / "page.js").read_text()
    parts = {
        "HASH": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "TITLE": html.escape(" · ".join(run["name"] for run in data)),
        "STYLE": (here / "page.css").read_text(),
        "SCRIPT": script,
        "FIGURES": figures,
        "DATA": embedded({"runs": data, "arms": arms_of(data, arms), "comparison": comparison}),
    }
    # in one pass, so that inserted text is not scanned again; a lone surrogate in a hand-made log must not lose the page
    page = re.sub(r"@@([A-Z]+)@@", lambda match: parts[match.group(1)], page)
    output.write_bytes(page.encode(errors="replace"))
    return {run["name"]: len(rows) for run, rows in zip(data, logs, strict=True)}


def read_run(folder: Path, name: str) -> dict[str, Any]:
    """Config, metrics by step, and the rollouts whose tokens were kept."""
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        inside = sorted(str(path.parent) for path in folder.glob("*/metrics.jsonl"))
        hint = f"; it holds runs: {', '.join(inside)}" if inside else ""
        raise ConfigError(f"{str(folder)!r} holds no run: there is no metrics.jsonl in it{hint}")
    rows = [_finite(row) for row in logged(folder)]
    config = folder / "config.yaml"
    text = config.read_text() if config.is_file() else ""
    records = read_json_lines(folder / "tokens.jsonl")
    return {
        "name": name,
        "config": text,
        "metrics": rows,
        "rollouts": records[:: max(1, -(-len(records) // MOST_ROLLOUTS))],
        "samples": read_samples(folder / "samples.jsonl"),
        "followed": ((yaml.safe_load(text) or {}).get("epistemic") or {}).get("lexicon", "self_doubt"),
    }


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rollouts of the first and the last recorded step, as text."""
    rows = read_json_lines(path)
    ends = {rows[0]["step"], rows[-1]["step"]} if rows else set()
    return [{name: row[name] for name in (*SAMPLE, *TURNS) if name in row} for row in rows if row["step"] in ends]


def _finite(row: dict[str, float]) -> dict[str, float]:
    """Without values that are not finite; a step whose gradient was not finite is reported by other metrics."""
    return {name: value for name, value in row.items() if math.isfinite(value)}


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
    return fingerprint(yaml.safe_load(config) or {"run": number}, ("seed", "run_dir"))


def _common(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    common = re.sub(r"[-_./]*(?:seed)?[-_=]*\d*$", "", os.path.commonprefix(names))  # noqa: RUF071 any common beginning
    return common or names[0]


def _with_seeds(name: str, seeds: int) -> str:
    return name if seeds == 1 else f"{name} ({seeds} seeds)"


def names_of(runs: Sequence[Path]) -> list[str]:
    """Folder names; where two would be the same, with as many folders above as tell them all apart."""
    parts = [path.resolve().parts for path in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in runs]


def embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in, whatever a model wrote."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
