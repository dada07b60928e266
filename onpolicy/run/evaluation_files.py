"""The files of an evaluation: ``<set>.jsonl``, one line a problem; a run keeps those of a step in ``eval/step-<n>``."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onpolicy.utils.disk import atomic_write, retry_while_disk_full


@dataclass(frozen=True)
class ProblemResult:
    """All samples of one problem."""

    id: str
    rewards: list[float]
    right: list[bool]
    answers: list[str | None]
    """Extracted final answers; None where there is none."""
    lengths: list[int]
    """Tokens of each completion."""
    truncated: list[bool]
    completions: list[str]
    graded: dict[str, list[bool]] = field(default_factory=dict)
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
        path.stem: _rows(path) for number in chosen for path in sorted(evaluation_folder(run, number).glob("*.jsonl"))
    }


def read_results(path: Path) -> dict[str, ProblemResult]:
    """Problem id -> result, from one set's file, which may hold only some of the problems or not exist yet."""
    return {row["id"]: ProblemResult(**row) for row in (_rows(path) if path.is_file() else ())}


@retry_while_disk_full(lambda path, results: path)
def write_results(path: Path, results: Collection[ProblemResult]) -> None:
    """Replaces one set's file."""
    atomic_write(path, "".join(json.dumps(asdict(r)) + "\n" for r in results))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
