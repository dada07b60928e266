"""The figures that a grid asks for: the frontier and the dose-response, as numbers, as drawings, and in the sweep's page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from onpolicy.experiments.sweep.confirmation import LEAST_SEEDS, confirmation_table, confirmations
from onpolicy.experiments.sweep.dose_response import DOSE, draw_responses, responses
from onpolicy.experiments.sweep.frontier import draw_frontier, frontier_points, frontier_table
from onpolicy.experiments.sweep.grid import Cell, Grid
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.json_lines import finite
from onpolicy.utils.terminal import plain


def write_figures(whole: Sequence[Cell], grid: Grid, output: Path, console: Console) -> str:
    """Writes ``frontier`` and ``dose_response``, each as .json and .svg, where the grid asks for them; returns the drawings."""
    drawings = []
    if grid.frontier and (points := frontier_points([c.run for c in whole], grid.eval_groups, grid.frontier)):
        console.print(frontier_table(points))
        written = {"axes": grid.frontier, "points": [asdict(p) for p in points]}
        drawings.append(
            _write(
                output / "frontier",
                written,
                lambda p: draw_frontier(points, grid.frontier, p, bar=bool(grid.confirm)),
                console,
            )
        )
    if grid.confirm:
        first, runs = next(iter(grid.arms)), [c.run for c in whole]
        confirmed = confirmations(runs, grid.eval_groups, grid.frontier, grid.confirm, first)
        if confirmed:
            console.print(confirmation_table(confirmed))
        else:
            console.print(
                f"confirm: needs {LEAST_SEEDS} finished seeds of an arm, of {plain(first)} and of its controls"
            )
        written = {"confirm": grid.confirm, "arms": [asdict(c) for c in confirmed]}
        (output / "confirmation.json").write_text(json.dumps(finite(written), indent=1) + "\n")
    if grid.dose_response and not (found := responses(whole, grid.eval_groups, grid.dose_response, grid.dose)):
        expected = f"{grid.dose}/squared_group" if grid.dose else DOSE
        console.print(f"dose_response: no arm has {plain(expected)} in the metrics of all its runs", soft_wrap=True)
    elif grid.dose_response:
        for name in grid.dose_response:
            if lacking := [f"{r.arm} {r.factor}".strip() for r in found if name not in r.read]:
                console.print(f"dose_response: {plain(name)} is unknown of {plain(', '.join(lacking))}", soft_wrap=True)
        if idle := [f"{r.arm} {r.factor}".strip() for r in found if not r.dose]:
            console.print(f"dose_response: the bonus changed no advantage in {plain(', '.join(idle))}", soft_wrap=True)
        written = {"read": grid.dose_response, "points": [asdict(r) for r in found]}
        drawings.append(
            _write(output / "dose_response", written, lambda p: draw_responses(found, grid.dose_response, p), console)
        )
    return "".join(drawings)


def _write(path: Path, written: Mapping[str, Any], draw: Callable[[Path], None], console: Console) -> str:
    """The drawing's text, from its tag on; empty where nothing can draw it."""
    path.with_suffix(".json").write_text(json.dumps(finite(written), indent=1) + "\n")
    drawing = path.with_suffix(".svg")
    try:
        draw(drawing)
    except ConfigError as error:
        console.print(f"no {plain(drawing)}: {error}", soft_wrap=True)
        return ""
    console.print(f"{path.name.replace('_', '-')}: {plain(drawing)}", soft_wrap=True)
    text = drawing.read_text()
    return text[text.index("<svg") :]
