"""Writes an evaluation in the formats that other tools read."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from onpolicy.config.schema import Config
from onpolicy.run.evaluation_files import read_results
from onpolicy.types import Metrics
from onpolicy.utils.disk import atomic_write
from onpolicy.utils.ready import project_version

FIXED = ("set", "problem", "sample", "right", "answer", "tokens", "truncated", "markers")


def export(folder: Path, config: Config, metrics: Metrics) -> None:
    """``results.json`` in the layout of lm-evaluation-harness, and ``samples.csv`` with one row a sample.

    Args:
        folder: the evaluation's, with ``<set>.jsonl``
        config: what was evaluated
        metrics: ``eval/<set>/<what>``
    """
    sets = list(dict.fromkeys(name.split("/")[1] for name in metrics))
    atomic_write(folder / "results.json", json.dumps(harness(sets, config, metrics), indent=1) + "\n")
    write_samples(folder, sets)


def harness(sets: list[str], config: Config, metrics: Metrics) -> Mapping[str, object]:
    """``results[set]["<what>,none"]`` and ``n-samples``; "none" is the harness's name for unfiltered answers."""
    results = {
        name: {"alias": name}
        | {f"{n.split('/', 2)[2]},none": value for n, value in metrics.items() if n.startswith(f"eval/{name}/")}
        for name in sets
    }
    problems = {name: int(metrics[f"eval/{name}/problems"]) for name in sets}
    return {
        "results": results,
        "n-samples": {name: {"original": n, "effective": n} for name, n in problems.items()},
        "config": {"model": config.model.path, "model_revision": config.model.revision, "random_seed": config.seed},
        "onpolicy": {"version": project_version(), "eval": {k: v for k, v in asdict(config.eval).items() if k != "sets"}},
        "model_name": config.model.path,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def write_samples(folder: Path, sets: list[str]) -> None:
    """A column for each further grader; ``markers`` is the paper's count of an answer."""
    from onpolicy.rewards.lexicon import count

    results = {name: read_results(folder / f"{name}.jsonl") for name in sets}
    graders = list(dict.fromkeys(g for found in results.values() for r in found.values() for g in r.graded))
    with (folder / "samples.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*FIXED, *graders])
        for name, found in results.items():
            for result in found.values():
                for i, text in enumerate(result.completions):
                    markers = sum(count(text, "paper10", "paper").values())
                    right, cut = _as_digit(result.right[i]), int(result.truncated[i])
                    writer.writerow(
                        [name, result.id, i, right, result.answers[i], result.lengths[i], cut, markers]
                        + [_as_digit(result.graded[g][i]) for g in graders]
                    )


def _as_digit(verdict: bool | None) -> str:
    """1, 0, or nothing where it was not graded."""
    return "" if verdict is None else str(int(verdict))
