"""What the lab measures in a run's evaluation besides accuracy: exact, because every attempt can be checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from onpolicy.experiments.lab import grading
from onpolicy.run.evaluation_files import read_evaluation
from onpolicy.utils.json_lines import finite

MEASURES: Mapping[str, Callable[[str, str], float | None]] = {
    "corrected": grading.corrected,
    "harmed": grading.harmed,
    "self_doubt_precision": grading.self_doubt_precision,
    "self_doubt_recall": grading.self_doubt_recall,
    "facts": grading.facts,
    "verdicts": grading.verdicts,
    "attempts": lambda completion, problem_id: float(len(grading.tried(completion))),
}
"""Name -> grade of an answer; averaged over the answers to which it applies."""


def readout(
    folder: Path, eval_groups: Mapping[str, Sequence[str]], step: int | None = None
) -> dict[str, dict[str, float]]:
    """Set, or group of sets -> measure -> mean, of the run's evaluation at a step; None: of its last one. A measure that applies to no
    answer is absent.
    """
    answers = {
        name: [(row["id"], text) for row in rows for text in row["completions"]]
        for name, rows in read_evaluation(folder, step).items()
    }
    answers |= {group: [a for name in names for a in answers[name]] for group, names in eval_groups.items()}
    return {name: exact_measures(found) for name, found in answers.items()}


def exact_measures(answers: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Measure -> mean, over answers given as (problem's id, text)."""
    found: dict[str, float] = {}
    for name, grade in MEASURES.items():
        values = [v for problem, text in answers if (v := grade(text, problem)) is not None]
        if values:
            found[name] = fmean(values)
    return found


def versions() -> dict[str, str]:
    """Versions of the packages that determine the numbers."""
    return {name: version(name) for name in ("torch", "transformers", "numpy")}


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """The measurement in the file, made now if the file does not exist."""
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


def rounded(value: Any) -> Any:
    """Numbers to five digits, those that are not finite as null, for files that are kept."""
    return _to_five_digits(finite(value))


def _to_five_digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_five_digits(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_to_five_digits(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
