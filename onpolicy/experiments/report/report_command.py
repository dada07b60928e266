"""``onpolicy report``: the page of runs, as one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpolicy.experiments.report.next_step import evaluations
from onpolicy.experiments.report.page import write_report
from onpolicy.utils.terminal import print_next


def report_runs(runs: Sequence[Path], output: Path | None) -> None:
    """Writes the page, by default into the first run's folder, and says what it shows."""
    output = output or runs[0] / "report.html"
    shown = write_report(runs, output)
    size = output.stat().st_size / 2**20
    print(f"{output}  ({size:.1f} MB; {', '.join(f'{name}: {steps} steps' for name, steps in shown.items())})")
    print_next(*evaluations(runs))
