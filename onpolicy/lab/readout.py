"""What the lab reads off a run's evaluation beyond the share right: exact, because every attempt can be checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean

from onpolicy.lab import grading

MEASURES: Mapping[str, Callable[[str, str], float | None]] = {
    "corrected": grading.corrected,
    "harmed": grading.harmed,
    "doubt_precision": grading.doubt_precision,
    "doubt_recall": grading.doubt_recall,
    "facts": grading.facts,
    "verdicts": grading.verdicts,
    "attempts": lambda completion, problem_id: float(len(grading.tried(completion))),
}
"""By name; each a mean over the answers to which it applies."""


def readout(folder: Path) -> dict[str, dict[str, float]]:
    """Set -> measure -> mean, of the run's last evaluation; a measure that applies to no answer is absent."""
    (*_, last) = sorted((folder / "eval").glob("step-*"))
    return {path.stem: measure_set(path) for path in sorted(last.glob("*.jsonl"))}


def measure_set(path: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    answers = [(row["id"], text) for row in rows for text in row["completions"]]
    found: dict[str, float] = {}
    for name, measure in MEASURES.items():
        values = [v for problem, text in answers if (v := measure(text, problem)) is not None]
        if values:
            found[name] = fmean(values)
    return found
