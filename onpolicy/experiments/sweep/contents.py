"""Whether the arms of a sweep have read the same: a file may have changed between two calls that each run some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onpolicy.config.compare import config_differences
from onpolicy.experiments.sweep.compare import Confound
from onpolicy.experiments.sweep.grid import Cell
from onpolicy.run.inputs import read_contents


def content_confounds(runs: Sequence[Cell]) -> Iterator[Confound]:
    """Data and models that have the same settings as in the first run with the same factor and seed, and other content."""
    firsts: dict[tuple[str, int], Cell] = {}
    for cell in runs:
        first = firsts.setdefault((cell.factor, cell.seed), cell)
        own, reference = read_contents(cell.folder), read_contents(first.folder)
        for key in own.keys() & reference.keys():
            same_settings = not any(config_differences(_at(cell, key), _at(first, key)))
            if same_settings and own[key] != reference[key]:
                yield Confound(cell.arm, cell.factor, f"the content of {key}", own[key], reference[key])


def _at(cell: Cell, key: str) -> object:
    """What the settings say about ``key``, e.g. ``eval.sets.easy``."""
    found: object = cell.canonical
    for part in key.split(".", 2):
        found = found.get(part) if isinstance(found, dict) else None
    return found
