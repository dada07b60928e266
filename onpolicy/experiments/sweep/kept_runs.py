"""What comparisons read of finished runs, in one small text file: tables and figures can be made again without the runs, and a sweep can go
on where its folder is not.

The first line has what the runs share, each further one a run: the settings in which it differs, its metrics where it was evaluated, and
how many answers to each problem were right. Answers themselves are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from onpolicy.experiments.sweep.budgets import BUDGETS
from onpolicy.experiments.sweep.grid import RESTORED, Cell, run_folder
from onpolicy.run.evaluation_files import (
    ProblemResult,
    evaluated_steps,
    evaluation_folder,
    read_evaluation,
    write_results,
)
from onpolicy.run.run_dir import NOT_HASHED, config_hash, logged
from onpolicy.types import Metrics
from onpolicy.utils.disk import atomic_write
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.json_lines import read_json_lines

KEPT = "kept_runs.jsonl"
"""Name of the file in the output of an experiment that keeps its runs."""
METRICS = (
    "group/pass_rate", "rollout/completion_length/mean", "epistemic/*/rate_per_1k", "credit/dose", "eval/*/avg@*", "eval/*/pass@*",
    "eval/*/completion_length", "eval/*/truncated", "eval/*/problems", "eval/*/epistemic/*/rate_per_1k",
)  # fmt: skip
"""Patterns of the metrics that are kept; besides, the costs in tokens, summed over the steps since the row before."""
COSTS = [metric for metrics in BUDGETS.values() for metric in metrics]
DIGITS = 5


@dataclass(frozen=True)
class _Shared:
    """The first line of a file."""

    settings: Mapping[str, Any]
    """Of the first run."""
    problems: Mapping[str, Sequence[str]]
    """Set -> ids, in order."""
    metrics: Sequence[str]
    """The columns of every run's rows."""


def keep(runs: Sequence[Cell], path: Path) -> None:
    """Writes the file anew.

    Raises:
        ConfigError: two runs were evaluated on different problems.
    """
    if not runs:
        return
    rows = {run.folder: _rows(run.folder) for run in runs}
    problems: dict[str, list[str]] = {}
    for run in runs:
        for name, results in read_evaluation(run.folder).items():
            ids = [row["id"] for row in results]
            if problems.setdefault(name, ids) != ids:
                raise ConfigError(f"{path}: {run.name} was evaluated on other problems of {name!r} than {runs[0].name}")
    names = sorted({name for own in rows.values() for row in own for name in row})
    shared = _Shared(_settings(runs[0].folder), problems, names)
    lines = [vars(shared), *(_line(run, rows[run.folder], shared) for run in runs)]
    atomic_write(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def restore(path: Path, output: Path) -> list[Path]:
    """Writes each run of the file into its folder under the output of a sweep, as a finished run; returns the new folders. A run whose
    folder is there stays as it is.

    Raises:
        ConfigError: there is no such file, or a run's settings do not have the hash that it was kept with.
    """
    if not (lines := read_json_lines(path)):
        raise ConfigError(f"{str(path)!r}: expected a file of kept runs")
    shared, found = _Shared(**lines[0]), []
    for line in lines[1:]:
        folder = run_folder(output, line["arm"], line["factor"], line["seed"])
        if not (folder / "config.yaml").exists():
            _write(folder, line, shared)
            found.append(folder)
    return found


def _line(run: Cell, rows: Sequence[Metrics], shared: _Shared) -> dict[str, Any]:
    settings = {name: own for name, own in _settings(run.folder).items() if own != shared.settings.get(name)}
    return {
        "arm": run.arm, "factor": run.factor, "seed": run.seed, "config": config_hash(run.folder), "settings": settings,
        "rows": [[row.get(name) for name in shared.metrics] for row in rows],
        "right": {step: _right(run.folder, step) for step in evaluated_steps(run.folder)},
    }  # fmt: skip


def _right(folder: Path, step: int) -> dict[str, tuple[list[int], list[int] | int]]:
    """Set -> right and graded answers to each problem; one number where as many were graded of each."""
    graded = {
        name: [[verdict for verdict in row["right"] if verdict is not None] for row in rows]
        for name, rows in read_evaluation(folder, step).items()
    }
    counts = {name: [len(row) for row in rows] for name, rows in graded.items()}
    return {
        name: ([sum(row) for row in rows], counts[name] if len({*counts[name]}) > 1 else counts[name][0])
        for name, rows in graded.items()
    }


def _rows(folder: Path) -> list[Metrics]:
    """The rows of the first step, of every evaluation and of the last step."""
    every, evaluated = logged(folder), evaluated_steps(folder)
    logged_costs = [name for name in COSTS if any(name in row for row in every)]
    found, spent = [], dict.fromkeys(logged_costs, 0.0)
    for number, row in enumerate(every):
        for name in logged_costs:
            spent[name] += row.get(name, 0.0)
        if int(row["step"]) in (*evaluated, 1) or number == len(every) - 1:
            chosen = {n: v for n, v in row.items() if any(fnmatch(n, pattern) for pattern in METRICS)}
            found.append({n: float(f"{v:.{DIGITS}g}") for n, v in chosen.items()} | spent | {"step": row["step"]})
            spent = dict.fromkeys(logged_costs, 0.0)
    return found


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return {name: own for name, own in found.items() if name not in NOT_HASHED}


def _write(folder: Path, line: Mapping[str, Any], shared: _Shared) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**shared.settings, **line["settings"], "run_dir": str(folder)}
    rows = [{n: v for n, v in zip(shared.metrics, row, strict=True) if v is not None} for row in line["rows"]]
    atomic_write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for step, sets in line["right"].items():
        for name, (right, graded) in sets.items():
            counts = graded if isinstance(graded, list) else [graded] * len(right)
            results = [_result(*of) for of in zip(shared.problems[name], right, counts, strict=True)]
            target = evaluation_folder(folder, int(step)) / f"{name}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_results(target, results)
    (folder / "checkpoints").mkdir(exist_ok=True)
    atomic_write(folder / RESTORED, f"{settings['steps']}\n")
    atomic_write(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    if (found := config_hash(folder)) != line["config"]:
        (folder / "config.yaml").unlink()
        raise ConfigError(
            f"{line['arm']} {line['factor']} seed {line['seed']}: expected settings with the hash {line['config']}, got {found}"
        )


def _result(problem: str, right: int, graded: int) -> ProblemResult:
    verdicts = [True] * right + [False] * (graded - right)
    return ProblemResult(problem, [float(v) for v in verdicts], list(verdicts), [], [], [], [])
