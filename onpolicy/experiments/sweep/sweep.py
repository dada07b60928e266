"""``onpolicy sweep GRID.yaml``: runs every arm of a grid with several seeds, except what is finished, and compares the arms.

A grid names one config and what each arm changes in it::

    config: self_distillation.yaml        # in the grid's folder
    seeds: [0, 1, 2]
    arms:                                 # the others are compared with the first
      plain: {}
      floor: {"objective[0].target": marker_mass_floor}
    factors:                              # every arm is run under each of these
      narrow: {data.coverage: {problems: 8, seed: "${seed}"}}   # other problems with each seed
      all: {}
    eval_groups:                          # evaluation sets that are also compared as one
      out_of_domain: [other_map, longer]
    axes: [objective]                     # beginnings of the keys in which arms are compared; any other difference is refused
    confounds: [trainer.lr]               # unless it is declared here: then the comparison reports it
    frontier: {in_domain: unseen, out_of_domain: out_of_domain}   # a figure: what each arm learns against what it keeps
    confirm: {floor: [shuffled, grpo]}   # arms, and the controls that each has to beat
    dose_response: [unseen, out_of_domain]   # a figure: accuracy, or a metric, over the realised dose of a bonus (credit/dose)
    dose: policy_gradient   # the term whose advantage is the bonus, where no reward is

Without ``axes`` all arms may differ from the first in one section of the config, the same one.

A run's folder is ``OUTPUT/ARM/FACTOR/seed-N``; a run that was interrupted resumes from its last checkpoint. Runs are separate processes,
several at a time if asked, on this machine or on a Ray cluster, each with its output in ``log.txt``; their curves are drawn while they run.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.live import Live

from onpolicy.experiments.report.page import write_report
from onpolicy.experiments.sweep.budgets import budgets_table
from onpolicy.experiments.sweep.compare import RUNS, SweepComparison, compare, differences_table, power_line
from onpolicy.experiments.sweep.contents import content_confounds
from onpolicy.experiments.sweep.figures import write_figures
from onpolicy.experiments.sweep.grid import Cell, cells, chosen, confounds, read_grid, refuse_doubles, run_folder
from onpolicy.experiments.sweep.live_curves import curves_table, standing, steps_done
from onpolicy.experiments.sweep.processes import Processes, Runs
from onpolicy.run.progress import Heartbeat
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.signals import on_interrupt, resumable
from onpolicy.utils.terminal import plain

__all__ = ["REPORT", "Cell", "cells", "look_closer", "read_grid", "sweep"]

REFRESH = 1.0
"""Seconds between two checks of the runs."""
STOPPING = "stopping: runs under way finish their step and save; again to stop at once"
REPORT = "report.html"
MOST_DRAWN = 12
"""The most arms whose curves can be distinguished on one page."""
MOST_SHOWN = 8
"""With more runs than this, only those that are running are shown."""


@resumable()
def sweep(
    path: Path,
    output: Path,
    overrides: Sequence[str],
    jobs: int,
    runs: Callable[[], Runs] | None = None,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> int:
    """Runs what is missing, then prints and writes the comparison; returns 1 if a run failed.

    Args:
        path: the grid
        output: folder of the runs
        overrides: for every run
        jobs: runs at a time, as processes of this machine
        runs: opens another place to run them, e.g. a Ray cluster
        arms: arms and factors to run; none: all. Whatever else of the grid is finished is compared too
        seeds: of the grid's, those to run; none: all

    Raises:
        Stopped: the user stopped the sweep; its runs have saved, and the same call goes on with them.
    """
    console, grid = Console(), read_grid(path)
    runs_in_all = len(grid.arms) * len(grid.factors or [""]) * len(grid.seeds)
    with console.status(f"checking the settings of {runs_in_all} runs"):
        everything = list(cells(path, output, overrides))
    selected = chosen(everything, arms, seeds)
    refuse_doubles(selected, overrides)
    missing = [cell for cell in selected if not cell.finished()]
    console.print(f"{len(selected)} runs, {len(selected) - len(missing)} finished, in {plain(output)}", soft_wrap=True)
    failed: list[Cell] = []
    if missing:
        with closing((runs or (lambda: Processes(jobs)))()) as place:
            failed = run_all(missing, place, console)
    whole = [cell for cell in everything if cell not in failed and (cell in selected or _finished_before(cell))]
    if not whole:
        return 1
    told = [c for c in confounds(path, grid, everything) if any((c.arm, c.factor) == (w.arm, w.factor) for w in whole)]
    told += content_confounds(whole)
    found = compare(
        [c.run for c in whole], grid.eval_groups, reference=next(iter(grid.arms)), axes=grid.axes, confounds=told
    )
    found.write(output)
    print_comparison(found, console)
    figure = write_figures(whole, grid, output, console)
    shown = drawn(whole)
    names = [f"{c.arm} {c.factor}".strip() for c in shown]
    write_report([c.folder for c in shown], output / REPORT, found.plain(), names, figure)
    console.print(f"all numbers: {plain(output / RUNS)}, {plain(output / 'comparison.json')}", soft_wrap=True)
    some = "" if len(shown) == len(whole) else f" of the first seed of {len(shown)} arms"
    console.print(f"the same with curves{some}, and rollouts token by token: {plain(output / REPORT)}", soft_wrap=True)
    return int(bool(failed))


def _finished_before(cell: Cell) -> bool:
    """Whether a run that was not asked for now was finished by an earlier call, with the same settings."""
    try:
        return cell.finished()
    except ConfigError:
        return False


def drawn(whole: Sequence[Cell]) -> list[Cell]:
    """All runs; with more than ``MOST_DRAWN`` arms, the first seed of each of the first arms."""
    first: dict[tuple[str, str], Cell] = {}
    for cell in whole:
        first.setdefault((cell.arm, cell.factor), cell)
    return list(whole) if len(first) <= MOST_DRAWN else list(first.values())[:MOST_DRAWN]


def print_comparison(found: SweepComparison, console: Console) -> None:
    """Differences after training, costs, differences at equal cost, and confounds."""
    if found.differences:
        console.print(differences_table(found.differences))
        console.print(plain(power_line(found.differences)), soft_wrap=True)
    for confound in dict.fromkeys((c.arm, c.key, c.value, c.reference) for c in found.confounds):
        arm, key, value, reference = map(plain, confound)
        console.print(f"arm {arm} differs in {key} as well: {value}, in the first arm {reference}", soft_wrap=True)
    console.print(budgets_table(found.budgets))
    if len({b.mean for b in found.budgets if b.kind == "generated"}) > 1 and found.at_equal_tokens:
        tokens = ", ".join(f"{f'{factor}: ' if factor else ''}{n:,.0f}" for factor, n in found.equal_tokens.items())
        console.print(differences_table(found.at_equal_tokens, f" when each run had sampled as many tokens ({tokens})"))


def run_all(missing: Sequence[Cell], place: Runs, console: Console) -> list[Cell]:
    """Runs the cells while drawing their curves; returns those that failed.

    Raises:
        KeyboardInterrupt: the user stopped the runs; all of them have ended.
    """
    failed: list[Cell] = []
    asked: list[None] = []
    """An entry for each time the user asked the runs to stop."""
    handed_on, few = 0, len(missing) <= MOST_SHOWN
    all_runs, began = _rows(missing), time.monotonic()
    begun_at = steps_done(all_runs)
    heartbeat = Heartbeat(
        lambda: console.print(
            standing(all_runs, len(missing) - len(running), begun_at, time.monotonic() - began), highlight=False
        )
    )
    with on_interrupt(lambda: asked.append(None)), Live(console=console, refresh_per_second=1, transient=True) as live:
        running = {place.start(cell): cell for cell in missing}
        while running:
            finished, _ = wait(running, timeout=REFRESH, return_when=FIRST_COMPLETED)
            if len(asked) > handed_on:
                place.stop()
                if not handed_on:
                    console.print(f"[yellow]{STOPPING}[/yellow]", soft_wrap=True)
                handed_on = len(asked)
            for future in finished:
                cell = running.pop(future)
                if asked:  # the next call says how it ended
                    continue
                console.print(f"{len(missing) - len(running)}/{len(missing)} {plain(cell.name)}", highlight=False)
                why = place.failure(cell, future)
                if why is not None:
                    failed.append(cell)
                    console.print(f"[red]failed[/red]: {why}", soft_wrap=True)
            if console.is_terminal:
                shown = missing if few else list(running.values())[: place.at_once]  # they begin in their order
                live.update(curves_table(_rows(shown), f"{len(missing) - len(running)} of {len(missing)} runs"))
            else:
                heartbeat.beat()
    if console.is_terminal and few:
        console.print(curves_table(all_runs, "runs"))
    if asked:
        raise KeyboardInterrupt
    return failed


def _rows(shown: Sequence[Cell]) -> list[tuple[str, Path, int, str]]:
    return [(c.name, c.folder, c.settings.steps, c.settings.epistemic.lexicon) for c in shown]


def look_closer(output: Path) -> list[str]:
    """What to run after a sweep that ended well: the report of the last arm's first run alone."""
    with (output / RUNS).open(newline="") as file:
        compared = list(csv.DictReader(file))
    first = next(row for row in compared if row["arm"] == compared[-1]["arm"])
    return ["report", str(run_folder(output, first["arm"], first["factor"], int(float(first["seed"]))))]
