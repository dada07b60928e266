"""How a forecast is asked for and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onpolicy.config.resolve import load_resolved
from onpolicy.experiments.forecast.forecast import GPUS, Assumed, Forecast, forecast, shape_of
from onpolicy.models import resolve_model
from onpolicy.utils.errors import ConfigError


def print_forecast(
    config: Path, overrides: Sequence[str], shape: Path | None, assumed: Assumed, output: Path | None
) -> int:
    """Two tables and what they rest on; 1 where something does not fit."""
    resolved = load_resolved(config, overrides)
    settings = resolved.config.model
    if shape is None:
        found = shape_of(
            resolve_model(settings.path), trust_remote_code=settings.trust_remote_code, revision=settings.revision
        )
    elif not shape.is_file():
        raise ConfigError(f"--shape: got {str(shape)!r}, which is no file; wanted a model's config.json")
    else:
        found = shape_of(str(shape))
    foreseen = forecast(resolved, found, assumed)
    console = Console()
    console.print(f"{found.parameters / 1e9:.2f} billion parameters, {foreseen.gpus} GPUs of kind {assumed.gpu}")
    console.print(memory_table(foreseen, GPUS[assumed.gpu].gib))
    console.print(time_table(foreseen, resolved.config.steps))
    for note in foreseen.notes:
        console.print(f"[dim]assumed: {note}[/dim]", highlight=False)
    for reason in foreseen.refusals:
        console.print(f"[red]does not fit:[/red] {reason}", highlight=False)
    if output is not None:
        output.write_text(
            json.dumps({"config": str(config), "assumed": asdict(assumed), **asdict(foreseen)}, indent=1) + "\n"
        )
    return int(bool(foreseen.refusals))


def memory_table(foreseen: Forecast, gib: float) -> Table:
    table = Table(title="memory of a GPU, GiB", title_justify="left")
    table.add_column("part")
    for kind in foreseen.memory:
        table.add_column(kind, justify="right")
    for part in dict.fromkeys(p for parts in foreseen.memory.values() for p in parts):
        values = [parts.get(part, 0.0) for parts in foreseen.memory.values()]
        if any(values):
            table.add_row(part, *(f"{v:.1f}" if v else "" for v in values))
    totals = [sum(parts.values()) for parts in foreseen.memory.values()]
    shown = [f"[{'green' if total <= gib else 'red'}]{total:.1f} of {gib:.0f}[/]" for total in totals]
    table.add_section()
    table.add_row("in all", *shown)
    return table


def time_table(foreseen: Forecast, steps: int) -> Table:
    table = Table(title="time", title_justify="left")
    for head in ("", "seconds a step", "hours"):
        table.add_column(head, justify="left" if not head else "right")
    for what, seconds in foreseen.seconds.items():
        table.add_row(what, f"{seconds:.3g}", f"{seconds * steps / 3600:.2g}")
    table.add_row("evaluate", "", f"{foreseen.evaluation_hours:.2g}")
    table.add_section()
    table.add_row(f"in all, {steps} steps", f"{sum(foreseen.seconds.values()):.4g}", f"{foreseen.hours:.3g}")
    return table
