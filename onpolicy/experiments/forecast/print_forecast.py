"""``onpolicy forecast``: reads the config and the model's shape, prints the forecast."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.experiments.forecast.forecast import Assumptions, Forecast, forecast
from onpolicy.experiments.forecast.hardware import gpu_of
from onpolicy.experiments.forecast.shape import shape_of, shape_of_model
from onpolicy.run.check_run import training_command
from onpolicy.run.devices import foreseen_ranks
from onpolicy.utils.errors import ConfigError, ModelError
from onpolicy.utils.tables import coloured, table
from onpolicy.utils.terminal import print_json, print_next
from onpolicy.utils.timer import in_words


def print_forecast(
    config: Path,
    overrides: Sequence[str],
    model_config: Path | None,
    assumed: Assumptions,
    output: Path | None,
    as_json: bool,
) -> int:
    """Prints three tables and the assumptions behind them, or all of it as JSON; returns 1 where something does not fit."""
    with contextlib.redirect_stdout(sys.stderr):  # what a user's module prints is no JSON
        overrides, ranks = foreseen_ranks(config, overrides, assumed.ranks)
        resolved, assumed = resolve(load(config, overrides)), replace(assumed, ranks=ranks)
    if model_config is None:
        try:
            found = shape_of_model(resolved.config.model)
        except ModelError as error:
            raise ModelError(f"{error} Its config.json alone is enough: --model-config FILE") from error
    elif not model_config.is_file():
        raise ConfigError(
            f"--model-config: got {str(model_config)!r}, which is not a file; expected a model's config.json"
        )
    else:
        found = shape_of(str(model_config))
    foreseen = forecast(resolved, found, assumed)
    written = {"config": str(config), "assumed": asdict(assumed), **asdict(foreseen)}
    if output is not None:
        output.write_text(json.dumps(written, indent=1) + "\n")
    if as_json:
        print_json(written)
        return int(bool(foreseen.refusals))
    console = Console()
    size = (
        f"{found.parameters / 1e9:.2f} billion" if found.parameters >= 5e6 else f"{found.parameters / 1e6:.2f} million"
    )
    console.print(f"{size} parameters, {foreseen.gpus} {'GPU' if foreseen.gpus == 1 else 'GPUs'} of kind {assumed.gpu}")
    console.print(memory_table(foreseen, gpu_of(assumed.gpu).gib))
    console.print(host_table(foreseen))
    console.print(time_table(foreseen, resolved.config.steps))
    for note in foreseen.notes:
        console.print(f"[dim]assumed: {note}[/dim]", highlight=False)
    for reason in foreseen.refusals:
        console.print(f"[red]does not fit:[/red] {reason}", highlight=False)
    print_next(training_command(config, overrides))
    return int(bool(foreseen.refusals))


def memory_table(foreseen: Forecast, gib: float) -> Table:
    parts = dict.fromkeys(part for parts in foreseen.memory.values() for part in parts)
    values = {part: [held.get(part, 0.0) for held in foreseen.memory.values()] for part in parts}
    totals = [sum(held.values()) for held in foreseen.memory.values()]
    return table(
        "memory of a GPU, GiB",
        ["part", *foreseen.memory],
        [
            *((part, *(f"{v:.1f}" if v else "" for v in row)) for part, row in values.items() if any(row)),
            None,
            ("total", *(coloured(f"{t:.1f} of {gib:.0f}", "green" if t <= gib else "red") for t in totals)),
        ],
    )


def host_table(foreseen: Forecast) -> Table:
    parts = dict.fromkeys(part for parts in foreseen.host.values() for part in parts)
    values = {part: [held.get(part, 0.0) for held in foreseen.host.values()] for part in parts}
    return table(
        "memory of the host, and disk, GiB",
        ["part", *foreseen.host],
        [
            *((part, *(f"{v:.1f}" if v else "" for v in row)) for part, row in values.items() if any(row)),
            None,
            ("total", *(f"{sum(held.values()):.1f}" for held in foreseen.host.values())),
            ("checkpoints on the disk", "", f"{foreseen.disk:.1f}"),
        ],
    )


def time_table(foreseen: Forecast, steps: int) -> Table:
    in_all = {"evaluate": foreseen.evaluation_hours, f"total, {steps} steps": foreseen.hours}
    evaluate, total = ((what, "", in_words(hours * 3600)) for what, hours in in_all.items())
    return table(
        "time",
        ["", "seconds per step", "in all"],
        [
            *((what, f"{s:.3g}", in_words(s * steps)) for what, s in foreseen.seconds.items()),
            evaluate,
            None,
            (total[0], f"{sum(foreseen.seconds.values()):.4g}", total[2]),
        ],
    )
