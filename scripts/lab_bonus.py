"""What the finished runs of bonuses say: python scripts/lab_bonus.py FILE BONUS_RUNS SURPRISE_RUNS [key=value ...]

The folders are the outputs of: onpolicy sweep lab/bonus --output BONUS_RUNS [key=value ...], and of lab/surprise, with some of their arms,
factors and seeds. FILE gets a row for each run (its config's hash, and what the lab measures exactly in its answers out of domain, e.g.
attempts) and a point for each bonus and weight: the realised dose, and what bonus.yaml reads. ``start`` is the reasoner before training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from onpolicy.config.shipped import SHIPPED
from onpolicy.experiments.lab.readout import exact_measures, readout, rounded, versions
from onpolicy.experiments.sweep.compare import pass_rates_by_problem, pooled_metrics, with_eval_groups
from onpolicy.experiments.sweep.dose_response import responses
from onpolicy.experiments.sweep.grid import Cell, Grid, cells, read_grid
from onpolicy.run.evaluation_files import read_evaluation
from onpolicy.run.run_dir import config_hash, logged
from onpolicy.utils.json_lines import finite

GROUP = "out_of_domain"
"""Whose answers are measured exactly."""


def bonuses(places: Sequence[tuple[Path, Path]], overrides: Sequence[str]) -> dict[str, Any]:
    """Reads the finished runs of grids.

    Args:
        places: each grid, and the folder of its runs
        overrides: with which they were run
    """
    found: dict[str, Any] = {
        "versions": versions(),
        "overrides": list(overrides),
        "start": {},
        "runs": [],
        "points": [],
    }
    for path, output in places:
        grid = read_grid(path)
        finished = [cell for cell in cells(path, output, overrides) if cell.finished()]
        found["start"] = found["start"] or start(finished[0], grid)
        found["runs"] += [
            {"arm": c.arm, "factor": c.factor, "seed": c.seed, "config": config_hash(c.folder), GROUP: exact(c, grid)}
            for c in finished
        ]
        found["points"] += [asdict(r) for r in responses(finished, grid.eval_groups, grid.dose_response, grid.dose)]
    return found


def exact(cell: Cell, grid: Grid) -> dict[str, float]:
    return readout(cell.folder, grid.eval_groups)[GROUP]


def start(cell: Cell, grid: Grid) -> dict[str, float]:
    """What is read, before the first step, where it is known then."""
    rates = with_eval_groups(pass_rates_by_problem(cell.folder, 0), grid.eval_groups)
    known = pooled_metrics(logged(cell.folder)[0], grid.eval_groups) | {n: fmean(r.values()) for n, r in rates.items()}
    rows = read_evaluation(cell.folder, 0)
    answers = [
        (row["id"], text) for name in grid.eval_groups[GROUP] for row in rows[name] for text in row["completions"]
    ]
    return {name: known[name] for name in grid.dose_response if name in known} | exact_measures(answers)


if __name__ == "__main__":
    file, bonus_runs, surprise_runs, *changes = sys.argv[1:]
    grids = ((SHIPPED / "lab/bonus.yaml", Path(bonus_runs)), (SHIPPED / "lab/surprise.yaml", Path(surprise_runs)))
    Path(file).write_text(json.dumps(rounded(finite(bonuses(grids, changes)))) + "\n")
