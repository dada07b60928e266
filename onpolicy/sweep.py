"""``onpolicy sweep GRID.yaml``: every arm of a grid, with several seeds; what is finished is not run again.

A grid names one config and what the arms change in it::

    config: self_distillation.yaml        # beside the grid
    seeds: [0, 1, 2]
    arms:                                 # the first is what the others are compared with
      plain: {}
      floor: {"objective[0].target": {name: marker_mass_floor, share: 0.9}}
    cross:                                # every arm under each of these
      narrow: {data.coverage.problems: 8}
      all: {}

A run's folder is ``OUTPUT/ARM/CROSS/seed-N``; one that was cut off goes on from its last checkpoint. Runs are processes of their own,
several at a time if asked, each with its output in ``log.txt``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import track

from onpolicy.checkpoint import Checkpoints
from onpolicy.compare import compare, comparison_table
from onpolicy.config import load
from onpolicy.plan import plan
from onpolicy.registry import ConfigError, suggest


@dataclass
class Grid:
    """What a grid file holds."""

    config: str
    arms: dict[str, Any]
    cross: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    arm: str
    cross: str
    seed: int
    config: Path
    overrides: tuple[str, ...]
    folder: Path

    @property
    def steps(self) -> int:
        return load(self.config, self.overrides).steps

    def finished(self) -> bool:
        latest = Checkpoints(self.folder / "checkpoints", keep_last=1, best=None).latest()
        return latest is not None and latest.step >= self.steps


def read_grid(path: Path) -> Grid:
    """Raises ConfigError for what no grid has."""
    if not path.is_file():
        raise ConfigError(f"sweep: file {str(path)!r} does not exist")
    raw = yaml.safe_load(path.read_text())
    if not isinstance(raw, dict) or not {"config", "arms"} <= raw.keys():
        raise ConfigError(f"{path}: wanted at least 'config' and 'arms'")
    for key in raw:
        if key not in Grid.__dataclass_fields__:
            raise ConfigError(f"{path}: {key}: unknown key.{suggest(key, Grid.__dataclass_fields__)}")
    try:
        grid = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Grid(config="", arms={})), raw))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(grid, Grid)
    if not grid.arms or not grid.seeds:
        raise ConfigError(f"{path}: wanted at least one arm and one seed")
    return grid


def cells(path: Path, output: Path, overrides: Sequence[str] = ()) -> Iterator[Cell]:
    """Every run, checked: a mistake in the last arm is found before the first has run.

    Raises:
        ConfigError: as for one config, with the arm's name.
    """
    grid = read_grid(path)
    config = path.parent / grid.config
    crosses = grid.cross or {"": {}}
    for seed in grid.seeds:
        for cross, crossed in crosses.items():
            for arm, changed in grid.arms.items():
                folder = output / arm / cross / f"seed-{seed}"
                changes = [f"{k}={json.dumps(v)}" for k, v in ((crossed or {}) | (changed or {})).items()]
                own = (*changes, *overrides, f"seed={seed}", f"run_dir={folder}")
                try:
                    plan(load(config, own))
                except ConfigError as error:
                    raise ConfigError(f"{path}, arm {arm!r}{f' x {cross!r}' if cross else ''}: {error}") from error
                yield Cell(arm, cross, seed, config, own, folder)


def sweep(path: Path, output: Path, overrides: Sequence[str], jobs: int) -> int:
    """Runs what is missing, then prints and writes the comparison; 1 where a run failed."""
    console = Console()
    everything = list(cells(path, output, overrides))
    missing = [cell for cell in everything if not cell.finished()]
    console.print(f"{len(everything)} runs, {len(everything) - len(missing)} finished, in {output}", soft_wrap=True)
    failed: list[Cell] = []
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_run, cell, jobs): cell for cell in missing}
        for done in track(as_completed(running), total=len(missing), description="runs", console=console):
            if done.result():
                failed.append(running[done])
                console.print(f"[red]failed[/red]: {running[done].folder / 'log.txt'}", soft_wrap=True)
    whole = [cell for cell in everything if cell not in failed]
    rows = compare([(c.arm, c.cross, c.seed, c.folder) for c in whole])
    rows.write(output)
    console.print(comparison_table(rows))
    console.print(f"all numbers: {output / 'runs.csv'}, {output / 'comparison.json'}", soft_wrap=True)
    return int(bool(failed))


def _run(cell: Cell, jobs: int) -> int:
    cell.folder.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // jobs, 1)
    environment: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "onpolicy", "train", str(cell.config), *cell.overrides]
    with (cell.folder / "log.txt").open("a") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
