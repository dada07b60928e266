"""What arms cost in tokens: sampled, read by teachers, trained on; in all, a run, and against the first arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol, TypeVar

from rich.table import Table

from onpolicy.run.run_dir import logged
from onpolicy.types import Metrics
from onpolicy.utils.tables import left, table, with_note

RunKey = tuple[str, str, int, Path]
"""Arm, cross, seed, folder."""
BUDGETS = {
    "tokens/generated": ("rollout/sampled_tokens", "context/sampled_tokens"),
    "tokens/scored": ("teacher/tokens",),
    "tokens/trained": ("rollout/tokens",),
}
"""Sums over a run: what an arm cost -> the metrics of a step that make it up."""


@dataclass(frozen=True)
class Budget:
    """Tokens of one kind that an arm used under one cross, evaluations apart."""

    arm: str
    cross: str
    kind: str
    """
    - ``generated``: sampled for training (or read from a dataset's completions instead), groups that were left out, what
      contexts asked for and the reference model's baseline included
    - ``scored``: prompt and completion of every context, once for each time that a teacher or the reference model reads them
    - ``trained``: tokens of completions that were trained on
    """
    seeds: int
    total: float
    """Over the arm's runs."""
    mean: float
    """A run."""
    relative: float | None
    """sum over seeds of the arm / sum over the same seeds of the first arm; None where that is 0 or no seed is in both."""


def costs(folder: Path) -> Metrics:
    """Sums over a run's steps; nothing of what its steps did not log."""
    found: Metrics = {}
    for row in logged(folder):
        for name, metrics in BUDGETS.items():
            for metric in metrics:
                if metric in row:
                    found[name] = found.get(name, 0.0) + row[metric]
    return found


def budgets(runs: Sequence[RunKey], reference: str) -> list[Budget]:
    """Of each arm under each cross, kind by kind; nothing of a kind that one of its runs did not log."""
    spent = {(arm, cross, seed): costs(folder) for arm, cross, seed, folder in runs}
    found = []
    places = dict.fromkeys(
        (cross, arm) for cross in dict.fromkeys(c for _, c, *_ in runs) for arm, c, *_ in runs if c == cross
    )
    for cross, arm in places:
        seeds = [s for a, c, s in spent if (a, c) == (arm, cross)]
        for name in BUDGETS:
            if not all(name in spent[arm, cross, seed] for seed in seeds):
                continue
            own = {seed: spent[arm, cross, seed][name] for seed in seeds}
            others = {s: spent.get((reference, cross, s), {}).get(name) for s in seeds}
            both = {s: other for s, other in others.items() if other is not None}
            base = sum(both.values())
            found.append(
                Budget(
                    arm=arm, cross=cross, kind=name.partition("/")[2], seeds=len(seeds),
                    total=sum(own.values()), mean=fmean(own.values()),
                    relative=sum(own[s] for s in both) / base if base else None,
                )
            )  # fmt: skip
    return found


def budgets_table(found: Sequence[Budget]) -> Table:
    """A row for each arm and cross, a column for each kind."""
    title = "tokens per run, mean over seeds; ×: relative to the first arm"
    return arm_table(title, found, lambda b: b.kind, _budget_cell)


def _budget_cell(budget: Budget) -> str:
    times = "" if budget.relative is None else f"×{budget.relative:.2f}"
    return with_note(f"{budget.mean:,.0f}", times, between=" ")


class _OfArm(Protocol):
    """What is known of one arm under one cross."""

    @property
    def arm(self) -> str: ...
    @property
    def cross(self) -> str: ...


T = TypeVar("T", bound=_OfArm)


def arm_table(title: str, found: Sequence[T], column: Callable[[T], str], cell: Callable[[T], str]) -> Table:
    """A row for each arm and cross, and a column of crosses where there are several.

    Args:
        title: of the table
        found: the contents of the cells
        column: the heading under which an entry stands
        cell: an entry as text
    """
    columns, crossed = list(dict.fromkeys(map(column, found))), any(entry.cross for entry in found)
    entries = {(entry.arm, entry.cross, column(entry)): cell(entry) for entry in found}
    rows = (
        (arm, *([cross] if crossed else []), *(entries.get((arm, cross, head), "–") for head in columns))
        for arm, cross in dict.fromkeys((entry.arm, entry.cross) for entry in found)
    )
    return table(title, [left("arm"), *([left("")] if crossed else []), *columns], rows)
