"""Runs of a sweep on other nodes: they and this process have to see the runs' folders under one path."""

from __future__ import annotations

import os
import time
from pathlib import Path

from onpolicy.experiments.sweep.grid import Cell
from onpolicy.experiments.sweep.processes import STOPPED, run_cell
from onpolicy.utils.errors import ConfigError

SYNC_TIMEOUT = 10.0
"""Seconds that a shared file system may need to show here what a node has written."""


def run_on_node(cell: Cell, folder: str) -> int:
    """The Ray task: the run's exit status.

    Args:
        folder: the driver's working directory

    Raises:
        ConfigError: the run's folder does not exist on this node.
    """
    require_shared(cell, folder)
    os.chdir(folder)
    # without Ray's own variables the run does not take itself for a worker
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_ADDRESS"}
    try:
        return run_cell(cell, environment)
    except KeyboardInterrupt:
        return STOPPED


def require_shared(cell: Cell, folder: str, option: str = "--ray") -> None:
    """Raises ConfigError where this node does not see a run's folder, from the driver's working directory."""
    if not Path(folder).is_dir() or not Path(folder, cell.folder).is_dir():
        raise _not_shared(cell, folder, "its node does not see the folder", option)


def require_finished(cell: Cell, option: str = "--ray") -> None:
    """Returns when this process sees the last checkpoint of a run that ended well on a node.

    Args:
        cell: the run
        option: that chose the nodes

    Raises:
        ConfigError: it does not see it within ``SYNC_TIMEOUT``.
    """
    deadline = time.monotonic() + SYNC_TIMEOUT
    while not cell.finished():
        if time.monotonic() > deadline:
            raise _not_shared(cell, os.getcwd(), "it ended well, but its checkpoint is not here", option)
        time.sleep(0.5)


def _not_shared(cell: Cell, folder: str, what: str, option: str) -> ConfigError:
    return ConfigError(
        f"{option}: {cell.name}: {what} {str(Path(folder, cell.folder))!r}. The runs' folder must lie on a file system that all nodes "
        "share under one path: name one with --output."
    )
