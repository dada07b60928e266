"""``onpolicy lab``: the demonstration, and how its reasoner is made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from onpolicy.registry import ConfigError

GRID = Path("configs/lab/demo.yaml")
MEAN_OVER = 100


def demo(output: Path | None) -> int:
    """GRPO, self-distillation, and self-distillation with one protection, from the shipped reasoner; then the report."""
    from onpolicy.report.page import write_report
    from onpolicy.sweep import cells, sweep

    if not GRID.is_file():
        raise ConfigError(f"lab: {str(GRID)!r} does not exist; run it in a clone of the repository")
    output = output or Path("runs/lab")
    code = sweep(GRID, output, (), jobs=1)
    page = output / "report.html"
    write_report([cell.folder for cell in cells(GRID, output) if cell.finished()], page)
    Console().print(f"curves, and rollouts token by token: {page}", soft_wrap=True)
    return code


def pretrain(output: Path | None) -> int:
    """Makes the reasoner anew, with a log beside it."""
    from onpolicy.lab.pretrain import Recipe
    from onpolicy.lab.pretrain import pretrain as make

    folder, recipe, start = output or Path("runs/reasoner"), Recipe(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    losses: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar, (folder / "pretrain.jsonl").open("w") as log:
        task = bar.add_task("pre-training", total=recipe.steps)
        log.write(json.dumps(asdict(recipe)) + "\n")

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            bar.update(
                task, completed=step, description=f"loss {sum(losses[-MEAN_OVER:]) / len(losses[-MEAN_OVER:]):.3f}"
            )
            if step % MEAN_OVER == 0:
                mean, seconds = sum(losses[-MEAN_OVER:]) / MEAN_OVER, time.monotonic() - start
                log.write(json.dumps({"step": step, "loss": round(mean, 4), "seconds": round(seconds)}) + "\n")
                log.flush()

        make(folder, recipe, report)
    Console().print(f"the reasoner: {folder}", soft_wrap=True)
    return 0


COMMANDS: dict[str, Callable[[Path | None], int]] = {"demo": demo, "pretrain": pretrain}
