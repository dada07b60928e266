"""The files of an evaluation: ``<set>.jsonl``, one line a problem; a run keeps those of a step in ``eval/step-<n>``."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onpolicy.utils.disk import atomic_write, retry_while_disk_full
from onpolicy.utils.json_lines import read_json_lines


@dataclass(frozen=True)
class ProblemResult:
    """All samples of one problem."""

    id: str
    rewards: list[float | None]
    right: list[bool | None]
    """None where it was not graded."""
    answers: list[str | None]
    """Extracted final answers; None where there is none."""
    lengths: list[int]
    """Tokens of each completion."""
    truncated: list[bool]
    completions: list[str]
    graded: dict[str, list[bool | None]] = field(default_factory=dict)
    """The verdicts of each of ``Evaluator.graders``."""
    digest: str = ""
    """A hash of the problem as it was asked and graded: another problem may later have the same id."""


def evaluation_folder(run: Path, step: int) -> Path:
    """Where a run keeps its evaluation at a step."""
    return run / "eval" / f"step-{step:06d}"


def evaluated_steps(run: Path) -> list[int]:
    """The steps at which a run was evaluated, in order."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "eval").glob("step-*"))


def read_evaluation(run: Path, step: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """Set -> its problems, each with the fields of ``ProblemResult``; empty where the run has no such evaluation.

    Args:
        run: the run's folder
        step: which of its evaluations; None: the last
    """
    steps = evaluated_steps(run)
    chosen = steps[-1:] if step is None else [s for s in steps if s == step]
    return {
        path.stem: read_json_lines(path)
        for number in chosen
        for path in sorted(evaluation_folder(run, number).glob("*.jsonl"))
    }


def read_results(path: Path) -> dict[str, ProblemResult]:
    """Problem id -> result, from one set's file, which may hold only some of the problems or not exist yet."""
    return {row["id"]: ProblemResult(**row) for row in read_json_lines(path)}


@retry_while_disk_full(lambda path, results: path)
def write_results(path: Path, results: Collection[ProblemResult]) -> None:
    """Replaces one set's file."""
    atomic_write(path, "".join(json.dumps(asdict(r)) + "\n" for r in results))
