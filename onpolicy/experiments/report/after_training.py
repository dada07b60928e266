"""``onpolicy train``: a run, and the page about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpolicy.config.shipped import config_argument
from onpolicy.distributed.node_ranks import start_ranks
from onpolicy.experiments.forecast.refuse import refuse_what_cannot_fit
from onpolicy.experiments.report.page import write_report
from onpolicy.run.check_run import check_run
from onpolicy.run.devices import for_ranks
from onpolicy.run.launch import launch_training


def train_and_report(config_path: Path, overrides: Sequence[str]) -> int:
    """Trains what this machine's GPU can hold, and writes ``report.html`` into the run folder once every step is done; returns the exit
    status."""
    overrides, ranks = for_ranks(config_path, overrides)
    refuse_what_cannot_fit(config_path, overrides, None if ranks == 1 else ranks)
    if ranks == 1:
        return launch_training(config_path, overrides, _write)
    resolved = check_run(config_path, overrides)  # said once, before any rank starts
    command = ["-m", "onpolicy", "train", config_argument(config_path), *overrides]
    return start_ranks(command, ranks, max_restarts=resolved.config.distributed.max_restarts)


def _write(folder: Path) -> Path:
    page = folder / "report.html"
    write_report([folder], page)
    return page
