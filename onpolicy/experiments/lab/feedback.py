"""``onpolicy lab feedback``: where self-distillation helps, where it harms.

The same loss on programs, whose interpreter names the step that went wrong, under what the teacher may see and on few or all problems
(configs/lab/feedback.yaml); measured on programs and on the search tasks, which nothing here trains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from onpolicy.config.shipped import SHIPPED
from onpolicy.experiments.lab.readout import rounded, versions
from onpolicy.experiments.lab.soundness import require_sound
from onpolicy.experiments.sweep.compare import Difference, against_reference, differences, pooled_metrics
from onpolicy.experiments.sweep.grid import Cell, cells, read_grid
from onpolicy.experiments.sweep.sweep import sweep
from onpolicy.models import resolve_model
from onpolicy.run.run_dir import logged
from onpolicy.types import Metrics
from onpolicy.utils.signals import resumable
from onpolicy.utils.tables import left, table

GRID = SHIPPED / "lab/feedback.yaml"
MEASURES = {
    "accuracy": "avg@4",
    "tokens": "completion_length",
    "markers_per_1k": "epistemic/paper10/rate_per_1k",
}
"""Measure -> metric of the evaluation."""


@resumable()
def feedback(output: Path, jobs: int) -> int:
    """Runs what is missing and writes ``feedback.json``; refuses a reasoner whose retries do not follow the interpreter's error."""
    for model in {cell.settings.model.path for cell in cells(GRID, output) if not cell.finished()}:
        require_sound(resolve_model(model))
    code = sweep(GRID, output, (), jobs)
    grid = read_grid(GRID)
    finished = [cell for cell in cells(GRID, output) if cell.finished()]
    runs = [cell.run for cell in finished]
    changes = against_reference(runs, grid.eval_groups)
    report = {
        "versions": versions(),
        "seeds": sorted({cell.seed for cell in finished}),
        "arms": summaries_by_arm(finished, grid.eval_groups),
        "from_start": [asdict(d) for d in changes],
        "against_answer": [asdict(d) for d in differences(runs, grid.eval_groups, next(iter(grid.arms)))]
        if runs
        else [],
    }
    (output / "feedback.json").write_text(json.dumps(rounded(report)) + "\n")
    console = Console()
    console.print(changes_table(changes))
    console.print(f"all numbers: {output / 'feedback.json'}", soft_wrap=True)
    return code


def summaries_by_arm(finished: Sequence[Cell], eval_groups: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """A row for each arm and factor: means over seeds, by set, at the start and at the end."""
    rows = []
    for arm, factor in dict.fromkeys((c.arm, c.factor) for c in finished):
        chosen = [logged(c.folder) for c in finished if (c.arm, c.factor) == (arm, factor)]
        own = {"arm": arm, "factor": factor, "seeds": len(chosen)}
        ends = {"start": [run[0] for run in chosen], "end": [_last(run) for run in chosen]}
        measured = {when: _sets([pooled_metrics(m, eval_groups) for m in found]) for when, found in ends.items()}
        rows.append(own | measured)
    return rows


def _last(run: Sequence[Metrics]) -> Metrics:
    return {name: value for row in run for name, value in row.items()}


def _sets(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    names = {name.split("/")[1] for name in metrics[0] if name.startswith("eval/") and name.endswith("/avg@4")}
    return {
        name: {what: fmean(m[f"eval/{name}/{metric}"] for m in metrics) for what, metric in MEASURES.items()}
        for name in sorted(names)
    }


def changes_table(changes: Sequence[Difference]) -> Table:
    return table(
        "accuracy minus reference model, 95 % t interval over seeds and problems",
        ["teacher sees", left("problems trained on"), left("set"), "accuracy", "change", "95 %"],
        (
            (d.arm, d.factor, d.set, f"{d.mean:.3f}", f"{d.difference:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}")
            for d in changes
        ),
    )
