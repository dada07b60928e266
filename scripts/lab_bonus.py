"""What the finished runs of bonuses say: python scripts/lab_bonus.py FILE BONUS_RUNS SURPRISE_RUNS [key=value ...]

The folders are the outputs of: onpolicy sweep lab/bonus --output BONUS_RUNS [key=value ...], and of lab/surprise, with some of their arms,
factors and seeds. FILE gets a row for each run, with its config's hash, and a point for each bonus and weight: the realised dose, what
bonus.yaml reads, and what the lab measures exactly in answers out of domain, e.g. attempts. ``start`` is the reasoner before training.
What FILE has of other bonuses and weights stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from onpolicy.config.shipped import SHIPPED
from onpolicy.experiments.lab.readout import MEASURES, readout, rounded, versions
from onpolicy.experiments.sweep.compare import pass_rates_by_problem, pooled_metrics, with_eval_groups
from onpolicy.experiments.sweep.dose_response import mean_with_interval, responses
from onpolicy.experiments.sweep.grid import Cell, Grid, cells, read_grid
from onpolicy.run.run_dir import config_hash, logged

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
        if not finished:
            continue
        found["start"] = found["start"] or start(finished[0], grid)
        exact = [readout(cell.folder, grid.eval_groups)[GROUP] for cell in finished]
        found["runs"] += [
            {"arm": c.arm, "factor": c.factor, "seed": c.seed, "config": config_hash(c.folder)} for c in finished
        ]
        for point in responses(finished, grid.eval_groups, grid.dose_response, grid.dose):
            own = [e for c, e in zip(finished, exact, strict=True) if (c.arm, c.factor) == (point.arm, point.factor)]
            known = {
                name: mean_with_interval([e[name] for e in own]) for name in MEASURES if all(name in e for e in own)
            }
            found["points"].append(asdict(point) | {"read": {**point.read, **known}})
    return found


def start(cell: Cell, grid: Grid) -> dict[str, float]:
    """What is read, before the first step, where it is known then."""
    rates = with_eval_groups(pass_rates_by_problem(cell.folder, 0), grid.eval_groups)
    known = pooled_metrics(logged(cell.folder)[0], grid.eval_groups) | {n: fmean(r.values()) for n, r in rates.items()}
    read = {name: known[name] for name in grid.dose_response if name in known}
    return read | readout(cell.folder, grid.eval_groups, 0)[GROUP]


def with_earlier(found: Mapping[str, Any], before: Mapping[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """What was found, and of what was found before the bonuses and weights that are not found again, in the order of the grids.

    Raises:
        SystemExit: they were run with other overrides.
    """
    if not before:
        return dict(found)
    if before["overrides"] != found["overrides"]:
        sys.exit(f"expected the overrides of the earlier runs, {before['overrides']}, got {found['overrides']}")
    grids = [read_grid(path) for path in paths]
    places = [(arm, factor) for grid in grids for arm in grid.arms for factor in grid.factors]
    place = lambda row: (row["arm"], row["factor"])  # noqa: E731
    again = {place(point) for point in found["points"]}
    merged = {
        name: sorted(
            [*(row for row in before[name] if place(row) not in again), *found[name]],
            key=lambda row: places.index(place(row)),
        )
        for name in ("runs", "points")
    }
    return {**found, "start": found["start"] or before["start"], **merged}


if __name__ == "__main__":
    file, bonus_runs, surprise_runs, *changes = sys.argv[1:]
    grids = ((SHIPPED / "lab/bonus.yaml", Path(bonus_runs)), (SHIPPED / "lab/surprise.yaml", Path(surprise_runs)))
    earlier = json.loads(Path(file).read_text()) if Path(file).is_file() else {}
    report = with_earlier(bonuses(grids, changes), earlier, [path for path, _ in grids])
    Path(file).write_text(json.dumps(rounded(report)) + "\n")
