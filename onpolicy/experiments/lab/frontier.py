"""``onpolicy lab frontier``: what arms learn against what they keep, where the reasoner knows part of its task (configs/lab/frontier.yaml).

Besides the grid's arms: the weights between those of the reasoner and those of each unprotected run (WiSE-FT, arXiv 2109.01903), which
cost no training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from onpolicy.config.resolve import load_resolved
from onpolicy.config.shipped import SHIPPED
from onpolicy.experiments.lab.readout import rounded, versions
from onpolicy.experiments.sweep.compare import compare
from onpolicy.experiments.sweep.figures import write_figures
from onpolicy.experiments.sweep.grid import Cell, cells, read_grid, run_folder
from onpolicy.experiments.sweep.kept_runs import KEPT, keep
from onpolicy.experiments.sweep.sweep import sweep
from onpolicy.models import open_model, resolve_model
from onpolicy.run.checkpoint import Checkpoints
from onpolicy.run.evaluate import build_evaluator
from onpolicy.run.evaluation_files import evaluation_folder
from onpolicy.run.loading import evaluation_prompts
from onpolicy.run.placement import build_generator
from onpolicy.utils.signals import resumable

GRID = SHIPPED / "lab/frontier.yaml"
UNPROTECTED = "unprotected"
SHARES = (0.25, 0.5, 0.75)
"""Of the trained weights."""
WEIGHTS = "model.safetensors"


@resumable()
def frontier(output: Path, jobs: int) -> int:
    """Runs and measures what is missing, and writes ``results.json``."""
    output.mkdir(parents=True, exist_ok=True)
    code = sweep(GRID, output, (), jobs)
    write_frontier(output, GRID, shares=SHARES)
    return code


def write_frontier(output: Path, path: Path, overrides: Sequence[str] = (), shares: Sequence[float] = ()) -> None:
    """What the finished runs of the grid under ``output`` say, in ``results.json`` and as a figure; what it reads of them is kept in
    ``kept_runs.jsonl``.

    Args:
        output: folder of the runs
        path: the grid; it has a frontier, and an arm called ``unprotected``
        overrides: with which they were run, e.g. another reasoner
        shares: of the trained weights, at which each unprotected run is evaluated besides
    """
    console, grid = Console(), read_grid(path)
    finished = [cell for cell in cells(path, output, overrides) if cell.finished()]
    if not finished:
        return
    between = [
        interpolated(cell, share, output, console) for cell in finished if cell.arm == UNPROTECTED for share in shares
    ]
    keep([*finished, *between], output / KEPT)
    write_figures([*finished, *between], grid, output, console)
    runs = [cell.run for cell in (*finished, *between)]
    compared = compare(runs, grid.eval_groups, reference=UNPROTECTED)
    report = {
        "versions": versions(),
        "runs": compared.hashes,
        "points": _read(output / "frontier.json").get("points", []),
        "confirmed": _read(output / "confirmation.json").get("arms", []),
        "differences": [asdict(d) for d in compared.differences],
        "at_equal_tokens": [asdict(d) for d in compared.at_equal_tokens],
        "budgets": [asdict(b) for b in compared.budgets],
    }
    (output / "results.json").write_text(json.dumps(rounded(report)) + "\n")
    console.print(f"all numbers: {output / 'results.json'}", soft_wrap=True)


def _read(figure: Path) -> dict[str, Any]:
    """What ``write_figures`` wrote; nothing where the grid does not ask for it."""
    found: dict[str, Any] = json.loads(figure.read_text()) if figure.is_file() else {}
    return found


def interpolated(cell: Cell, share: float, output: Path, console: Console) -> Cell:
    """A run's reasoner with weights between start and end, evaluated as the run was; kept as a run of an arm of its own."""
    arm = f"interpolated_{share:g}"
    folder = run_folder(output, arm, cell.factor, cell.seed)
    measured = evaluation_folder(folder, cell.settings.steps)
    if not measured.is_dir():
        console.print(f"{arm} {cell.factor} seed {cell.seed}", highlight=False)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(evaluation_folder(cell.folder, 0), evaluation_folder(folder, 0))
        for name in ("config.yaml", "metrics.jsonl"):  # the tokens that it cost
            shutil.copy(cell.folder / name, folder / name)
        with TemporaryDirectory() as scratch:
            _write_between(cell, share, Path(scratch) / "model")
            unfinished = measured.parent / "unfinished"
            evaluate_model(cell, Path(scratch) / "model", unfinished)
            unfinished.rename(measured)
    return replace(cell, arm=arm, folder=folder)


def _write_between(cell: Cell, share: float, folder: Path) -> None:
    latest = Checkpoints(cell.folder / "checkpoints", keep_last=1, best=None).latest()
    assert latest is not None
    shutil.copytree(latest.path, folder, ignore=shutil.ignore_patterns("state", WEIGHTS))
    start, end = (load_file(Path(path) / WEIGHTS) for path in (resolve_model(cell.settings.model.path), latest.path))
    save_file(between(start, end, share), folder / WEIGHTS, metadata={"format": "pt"})


def between(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """(1 - share) start + share end, tensor by tensor, in float32."""
    return {name: torch.lerp(start[name].float(), tensor.float(), share) for name, tensor in end.items()}


def evaluate_model(cell: Cell, model: Path, folder: Path) -> None:
    """Evaluates a model on a run's sets, with its settings."""
    resolved = load_resolved(cell.config, (*cell.overrides, f"model.path={model}"))
    handle = open_model(resolved)
    generator: Any = build_generator(resolved, handle)
    try:
        evaluator = build_evaluator(resolved, handle, generator, evaluation_prompts(resolved, handle.renderer))
        assert evaluator is not None
        evaluator.evaluate(folder)
    finally:
        generator.close()
