"""Speed and memory, as ratios against what one would otherwise use.

    python -m benchmarks run                 every row: about forty minutes on two cores
    python -m benchmarks run update loss     some of them
    python -m benchmarks show                the table from the results that are there

The peers, TRL and Liger, get an environment of their own (build/peers) the first time. Workers take steps in alternation, so what
disturbs one disturbs all; a ratio is the median over pairs of steps, with the least and the most beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers.environment import ROOT
from benchmarks.rows import ROWS, Line

RESULTS = ROOT / "docs" / "results" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed and memory against TRL, Liger and the limit."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, and print the table")
    run.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; none: all")
    run.add_argument("--repeats", type=int, default=3, help="steps of each worker that count, after one to warm up")
    run.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    show = commands.add_parser("show", help="print the table of earlier results")
    show.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    console = Console()
    if arguments.command == "run":
        if unknown := [row for row in arguments.rows if row not in ROWS]:
            parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
        for row in arguments.rows or ROWS:
            with console.status(f"[bold]{row}[/bold]: {(ROWS[row].__doc__ or '').strip()}"):
                measure(row, arguments.repeats, arguments.output)
            console.print(f"[green]✓[/green] {row}")
    console.print(table([line for row in ROWS for line in stored(arguments.output, row)]))


def measure(row: str, repeats: int, output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines, numbers = ROWS[row](Path(folder), repeats)
    output.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "repeats": repeats, "lines": [asdict(line) for line in lines], "numbers": numbers}
    (output / f"{row}.json").write_text(json.dumps(content, indent=1) + "\n")


def stored(output: Path, row: str) -> list[Line]:
    path = output / f"{row}.json"
    if not path.exists():
        return []
    return [Line(**(line | {"ratio": tuple(line["ratio"])})) for line in json.loads(path.read_text())["lines"]]


def machine() -> dict[str, Any]:
    import os

    import torch

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def table(lines: list[Line]) -> Table:
    found = Table("", "ratio", "spread", "bar", "", title="benchmarks", title_justify="left")
    for line in lines:
        middle, least, most = line.ratio
        spread = "" if least == most else f"{least:.2f} to {most:.2f}"
        mark = "" if line.met is None else "[green]✓[/green]" if line.met else "[red]✗[/red]"
        found.add_row(line.what, f"{middle:.3g}", spread, f"{line.bar} {mark}", f"[dim]{line.detail}[/dim]")
    return found


if __name__ == "__main__":
    main()
