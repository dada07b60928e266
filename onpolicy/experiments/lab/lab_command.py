"""``onpolicy lab``: the demonstration, the paper in miniature, the decisive comparison, and how the reasoner is made."""

from __future__ import annotations

import json
import os
import sys
import time
import webbrowser
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from onpolicy.config.shipped import SHIPPED
from onpolicy.utils.json_lines import read_json_lines
from onpolicy.utils.terminal import print_next

if TYPE_CHECKING:
    from onpolicy.experiments.lab.pretrain import Recipe

GRID = SHIPPED / "lab/demo.yaml"
MEAN_OVER = 100
LOG = "pretrain.jsonl"
"""Beside a reasoner: the recipe of each round, and the loss below it."""


def _demo(output: Path | None, jobs: int) -> int:
    """GRPO, self-distillation, and self-distillation with one protection, from the shipped reasoner; then the report."""
    from onpolicy.experiments.sweep.sweep import REPORT, look_closer, sweep

    output = output or Path("runs/lab")
    code = sweep(GRID, output, (), jobs)
    on_a_desktop = sys.stdout.isatty() and ("DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ)
    if on_a_desktop and (output / REPORT).is_file():
        webbrowser.open((output / REPORT).resolve().as_uri())
    if code == 0:
        print_next(look_closer(output), ["lab", "reproduce"])
    return code


def _reproduce(output: Path | None, jobs: int) -> int:
    from onpolicy.experiments.lab.reproduce import reproduce

    code = reproduce(output or Path("runs/reproduce"), jobs)
    if code == 0:
        print_next(["lab", "decisive"])
    return code


def _decisive(output: Path | None, jobs: int) -> int:
    from onpolicy.experiments.lab.decisive import decisive

    return _compared(decisive, output or Path("runs/decisive"), jobs)


def _feedback(output: Path | None, jobs: int) -> int:
    from onpolicy.experiments.lab.feedback import feedback

    return _compared(feedback, output or Path("runs/feedback"), jobs)


def _headroom(output: Path | None, jobs: int) -> int:
    from onpolicy.experiments.lab.headroom import headroom

    return _compared(headroom, output or Path("runs/headroom"), jobs)


def _frontier(output: Path | None, jobs: int) -> int:
    from onpolicy.experiments.lab.frontier import frontier

    return _compared(frontier, output or Path("runs/frontier"), jobs)


def _compared(run: Callable[[Path, int], int], output: Path, jobs: int) -> int:
    """Runs the arms of a grid and says how to look closer."""
    from onpolicy.experiments.sweep.sweep import look_closer

    code = run(output, jobs)
    if code == 0:
        print_next(look_closer(output))
    return code


def _pretrain(output: Path | None, jobs: int) -> int:
    """Pre-trains the reasoner from scratch."""
    from onpolicy.experiments.lab.pretrain import Recipe, pretrain

    folder = output or Path("runs/reasoner")
    _make(folder, Recipe(), pretrain)
    print_next(["eval", "lab/self_distillation", f"model.path={folder}"])
    return 0


def _learn_interpreter(output: Path | None, jobs: int) -> int:
    """Teaches the shipped reasoner the interpreter's task, and measures whether it has learned it."""
    from onpolicy.experiments.lab.learn_interpreter import RECIPE, learn_interpreter
    from onpolicy.experiments.lab.readout import rounded
    from onpolicy.experiments.lab.soundness import soundness
    from onpolicy.models import REASONER, resolve_model

    folder, shipped = output or Path("runs/interpreter_reasoner"), resolve_model(REASONER)
    _make(folder, RECIPE, partial(learn_interpreter, shipped))
    found = rounded(asdict(soundness(str(folder), shipped)))
    (folder / "soundness.json").write_text(json.dumps(found, indent=1) + "\n")
    Console().print_json(data=found)
    print_next(["lab", "feedback"] if output is None else ["eval", "lab/interpreter", f"model.path={folder}"])
    return 0


def _learn_partial(output: Path | None, jobs: int) -> int:
    """Teaches the shipped reasoner part of two more tasks."""
    from onpolicy.experiments.lab.learn_partial import RECIPE, learn_partial
    from onpolicy.models import REASONER, resolve_model

    folder = output or Path("runs/partial_reasoner")
    _make(folder, RECIPE, partial(learn_partial, resolve_model(REASONER)))
    print_next(["eval", "lab/headroom", f"model.path={folder}"])
    return 0


def _pretrain_large(output: Path | None, jobs: int) -> int:
    """Pre-trains a reasoner of five times the size, which knows part of the same tasks, from the round where it stands; measures what it
    knows."""
    from onpolicy.experiments.lab.learn_partial import LARGE_ROUNDS, pretrain_large
    from onpolicy.experiments.lab.partial_start import measure_start, start_table
    from onpolicy.experiments.lab.readout import rounded

    folder = output or Path("runs/large_reasoner")
    made = rounds_made(read_json_lines(folder / LOG)) if (folder / "config.json").is_file() else 0
    for number, recipe in list(enumerate(LARGE_ROUNDS))[made:]:
        _make(folder, recipe, pretrain_large, further=number > 0)
    start = rounded(measure_start(str(folder)))
    (folder / "start.json").write_text(json.dumps(start) + "\n")
    Console().print(start_table(start))
    print_next(["sweep", "lab/frontier", f"model.path={folder}"])
    return 0


def rounds_made(log: Iterable[Mapping[str, Any]]) -> int:
    """How many rounds of pre-training came to their last step; one that was cut off is made again."""
    made, steps = 0, None
    for line in log:
        steps = line.get("steps", steps)
        made += line.get("step") == steps
    return made


def _make(
    folder: Path,
    recipe: Recipe,
    train: Callable[[Path, Recipe, Callable[[int, float], None]], None],
    *,
    further: bool = False,
) -> None:
    """Trains a reasoner and logs the loss next to it, in ``further`` rounds below what is there."""
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    losses: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar, (folder / LOG).open("a" if further else "w") as log:
        task = bar.add_task("pre-training", total=recipe.steps)
        log.write(json.dumps(asdict(recipe)) + "\n")

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            last = losses[-MEAN_OVER:]
            mean, seconds = sum(last) / len(last), time.monotonic() - start
            bar.update(task, completed=step, description=f"loss {mean:.3f}")
            if step % MEAN_OVER == 0 or step == recipe.steps:
                log.write(json.dumps({"step": step, "loss": round(mean, 4), "seconds": round(seconds)}) + "\n")
                log.flush()

        train(folder, recipe, report)
    Console().print(f"the reasoner: {folder}", soft_wrap=True)


COMMANDS: dict[str, Callable[[Path | None, int], int]] = {
    "demo": _demo,
    "reproduce": _reproduce,
    "decisive": _decisive,
    "feedback": _feedback,
    "headroom": _headroom,
    "frontier": _frontier,
    "pretrain": _pretrain,
    "learn_interpreter": _learn_interpreter,
    "learn_partial": _learn_partial,
    "pretrain_large": _pretrain_large,
}


def run_lab(what: str, output: Path | None, jobs: int) -> int:
    """Runs one of the lab's commands; returns the exit status."""
    return COMMANDS[what](output, jobs)
