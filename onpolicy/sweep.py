"""``onpolicy sweep GRID.yaml``: every arm of a grid, with several seeds; what is finished is not run again.

A grid names one config and what the arms change in it::

    config: self_distillation.yaml        # beside the grid
    seeds: [0, 1, 2]
    arms:                                 # the first is what the others are compared with
      plain: {}
      floor: {"objective[0].target": {name: marker_mass_floor, share: 0.9}}
    cross:                                # every arm under each of these
      narrow: {data.coverage: {problems: 8, seed: "${seed}"}}   # other problems with each seed
      all: {}
    pools:                                # sets of the evaluation that are also compared as one
      out_of_domain: [other_map, longer]

A run's folder is ``OUTPUT/ARM/CROSS/seed-N``; one that was cut off goes on from its last checkpoint. Runs are processes of their own,
several at a time if asked, each with its output in ``log.txt``; their curves are drawn while they run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.live import Live
from rich.table import Table

from onpolicy.checkpoint import Checkpoints
from onpolicy.compare import Run, compare, comparison_table
from onpolicy.config import Config, load
from onpolicy.folder import refuse_other_settings
from onpolicy.live import curves
from onpolicy.plan import plan
from onpolicy.registry import ConfigError, suggest
from onpolicy.report.page import write_report
from onpolicy.terminal import plain
from onpolicy.yaml_files import file_name, read_yaml

REFRESH = 1.0
"""Seconds between two looks at the runs."""
REPORT = "report.html"
MOST_DRAWN = 12
"""Arms up to which curves can be told apart on one page."""
MOST_SHOWN = 8
"""Runs up to which all are shown; beyond, those that are running."""


@dataclass
class Grid:
    """What a grid file holds."""

    config: str
    arms: dict[str, Any]
    cross: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    pools: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    arm: str
    cross: str
    seed: int
    config: Path
    overrides: tuple[str, ...]
    folder: Path
    settings: Config
    """What file and overrides come to."""

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.arm, self.cross, f"seed {self.seed}") if part)

    @property
    def run(self) -> Run:
        """As ``onpolicy.compare`` wants it."""
        return self.arm, self.cross, self.seed, self.folder

    def finished(self) -> bool:
        """Raises ConfigError where the folder holds a run with other settings."""
        latest = Checkpoints(self.folder / "checkpoints", keep_last=1, best=None).latest()
        if latest is None or latest.step < self.settings.steps:
            return False
        refuse_other_settings(self.folder, self.settings)
        return True


def read_grid(path: Path) -> Grid:
    """Raises ConfigError for what no grid has."""
    if not path.is_file():
        raise ConfigError(f"sweep: file {str(path)!r} does not exist")
    raw = read_yaml(path, "sweep grid")
    if not {"config", "arms"} <= raw.keys():
        raise ConfigError(f"{path}: wanted at least 'config' and 'arms'")
    for key in map(str, raw):
        if key not in Grid.__dataclass_fields__:
            raise ConfigError(f"{path}: {key}: unknown key.{suggest(key, Grid.__dataclass_fields__)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Grid(config="", arms={})), raw)
        # unresolved: "${seed}" in an arm means the run's own
        grid = Grid(**OmegaConf.to_container(merged, resolve=False))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: wanted keys and values under arms, cross and pools, a list of seeds: {error}"
        ) from error
    if not grid.arms or not grid.seeds:
        raise ConfigError(f"{path}: wanted at least one arm and one seed")
    for section in ("arms", "cross", "pools"):
        for name, changes in getattr(grid, section).items():
            file_name(name, f"{path}: {section}.{name}")
            if section != "pools" and not isinstance(changes, dict | None):
                raise ConfigError(f"{path}: {section}.{name}: got {changes!r}, wanted keys and values to change")
    return grid


def check_pools(path: Path, grid: Grid, sets: Collection[str]) -> None:
    """Raises ConfigError where a pool names a set that is not evaluated."""
    for pool, names in grid.pools.items():
        for name in names:
            if name not in sets:
                raise ConfigError(f"{path}: pools.{pool}: got {name!r}, wanted sets of eval.sets: {', '.join(sets)}")


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
                    loaded = load(config, own)
                    plan(loaded)
                except ConfigError as error:
                    raise ConfigError(f"{path}, arm {arm!r}{f' x {cross!r}' if cross else ''}: {error}") from error
                check_pools(path, grid, loaded.eval.sets)
                yield Cell(arm, cross, seed, config, own, folder, loaded)


def sweep(path: Path, output: Path, overrides: Sequence[str], jobs: int) -> int:
    """Runs what is missing, then prints and writes the comparison; 1 where a run failed."""
    console, grid = Console(), read_grid(path)
    everything = list(cells(path, output, overrides))
    missing = [cell for cell in everything if not cell.finished()]
    console.print(
        f"{len(everything)} runs, {len(everything) - len(missing)} finished, in {plain(output)}", soft_wrap=True
    )
    failed = run_all(missing, jobs, console)
    whole = [cell for cell in everything if cell not in failed]
    if not whole:
        return 1
    rows = compare([c.run for c in whole], grid.pools, reference=next(iter(grid.arms)))
    rows.write(output)
    console.print(comparison_table(rows))
    console.print(f"all numbers: {plain(output / 'runs.csv')}, {plain(output / 'comparison.json')}", soft_wrap=True)
    if len({(c.arm, c.cross) for c in whole}) <= MOST_DRAWN:
        write_report([c.folder for c in whole], output / REPORT)
        console.print(f"curves, and rollouts token by token: {plain(output / REPORT)}", soft_wrap=True)
    else:
        console.print(
            f"curves of some of them: onpolicy report {plain(output)}/ARM{'/CROSS' if whole[0].cross else ''}/seed-*",
            soft_wrap=True,
        )
    return int(bool(failed))


def run_all(missing: Sequence[Cell], jobs: int, console: Console) -> list[Cell]:
    """Runs the cells, so many at a time, with their curves; returns those that failed."""
    failed: list[Cell] = []
    few = len(missing) <= MOST_SHOWN
    with (
        ThreadPoolExecutor(jobs) as pool,
        ExitStack() as stack,
        Live(console=console, refresh_per_second=1, transient=True) as live,
    ):
        running = {pool.submit(_run, cell, jobs): cell for cell in missing}
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # Ctrl-C must not start what is still waiting
        while running:
            finished, _ = wait(running, timeout=REFRESH, return_when=FIRST_COMPLETED)
            for future in finished:
                cell = running.pop(future)
                console.print(f"{len(missing) - len(running)}/{len(missing)} {plain(cell.name)}", highlight=False)
                if future.result():
                    failed.append(cell)
                    console.print(f"[red]failed[/red]: {plain(cell.folder / 'log.txt')}", soft_wrap=True)
            if console.is_terminal:
                shown = missing if few else [c for f, c in running.items() if f.running()]
                live.update(_curves(shown, f"{len(missing) - len(running)} of {len(missing)} runs"))
    if console.is_terminal and missing and few:
        console.print(_curves(missing, "runs"))
    return failed


def _curves(shown: Sequence[Cell], title: str) -> Table:
    return curves([(c.name, c.folder, c.settings.steps, c.settings.epistemic.lexicon) for c in shown], title)


def _run(cell: Cell, jobs: int) -> int:
    cell.folder.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // jobs, 1)
    environment: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "onpolicy", "train", str(cell.config), *cell.overrides]
    with (cell.folder / "log.txt").open("a") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
