"""What arms cost in tokens: sampled, read by teachers, trained on; in total, per run, and relative to the first arm."""

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
"""Arm, factor, seed and folder of a run."""
BUDGETS = {
    "tokens/generated": ("rollout/sampled_tokens", "context/sampled_tokens"),
    "tokens/scored": ("teacher/tokens",),
    "tokens/trained": ("rollout/tokens",),
}
"""A run's cost -> the metrics of a step that are summed for it."""


@dataclass(frozen=True)
class Budget:
    """Tokens of one kind that an arm used under one factor, without evaluations."""

    arm: str
    factor: str
    kind: str
    """
    - ``generated``: sampled for training (or read from a dataset's completions instead), groups that were left out, what
      contexts asked for and the reference model's baseline included
    - ``scored``: prompt and completion of every context, once for each time that a teacher or the reference model reads them
    - ``trained``: tokens of completions that were trained on
    """
    seeds: int
    total: float
    """Summed over the arm's runs."""
    mean: float
    """Per run."""
    relative: float | None
    """Sum over seeds of the arm / sum over the same seeds of the first arm; None where that is 0 or no seed is in both."""


def costs(folder: Path) -> Metrics:
    """Sums over a run's steps; costs that its steps did not log are absent."""
    found: Metrics = {}
    for row in logged(folder):
        for name, metrics in BUDGETS.items():
            for metric in metrics:
                if metric in row:
                    found[name] = found.get(name, 0.0) + row[metric]
    return found


def budgets(runs: Sequence[RunKey], reference: str) -> list[Budget]:
    """One for each arm, factor and kind; a kind that one of the arm's runs did not log is left out."""
    spent = {(arm, factor, seed): costs(folder) for arm, factor, seed, folder in runs}
    found = []
    places = dict.fromkeys(
        (factor, arm) for factor in dict.fromkeys(c for _, c, *_ in runs) for arm, c, *_ in runs if c == factor
    )
    for factor, arm in places:
        seeds = [s for a, c, s in spent if (a, c) == (arm, factor)]
        for name in BUDGETS:
            if not all(name in spent[arm, factor, seed] for seed in seeds):
                continue
            own = {seed: spent[arm, factor, seed][name] for seed in seeds}
            others = {s: spent.get((reference, factor, s), {}).get(name) for s in seeds}
            both = {s: other for s, other in others.items() if other is not None}
            base = sum(both.values())
            found.append(
                Budget(
                    arm=arm, factor=factor, kind=name.partition("/")[2], seeds=len(seeds),
                    total=sum(own.values()), mean=fmean(own.values()),
                    relative=sum(own[s] for s in both) / base if base else None,
                )
            )  # fmt: skip
    return found


def budgets_table(found: Sequence[Budget]) -> Table:
    """A row for each arm and factor, a column for each kind."""
    title = "tokens per run, mean over seeds; ×: relative to the first arm"
    return arm_table(title, found, lambda b: b.kind, _budget_cell)


def _budget_cell(budget: Budget) -> str:
    times = "" if budget.relative is None else f"×{budget.relative:.2f}"
    return with_note(f"{budget.mean:,.0f}", times, between=" ")


class _OfArm(Protocol):
    """What is known of one arm under one factor."""

    @property
    def arm(self) -> str: ...
    @property
    def factor(self) -> str: ...


T = TypeVar("T", bound=_OfArm)


def arm_table(title: str, found: Sequence[T], column: Callable[[T], str], cell: Callable[[T], str]) -> Table:
    """A row for each arm and factor, and a column of factors where there are several.

    Args:
        title: of the table
        found: the contents of the cells
        column: the heading under which an entry stands
        cell: an entry as text
    """
    columns, has_factors = list(dict.fromkeys(map(column, found))), any(entry.factor for entry in found)
    entries = {(entry.arm, entry.factor, column(entry)): cell(entry) for entry in found}
    rows = (
        (arm, *([factor] if has_factors else []), *(entries.get((arm, factor, head), "–") for head in columns))
        for arm, factor in dict.fromkeys((entry.arm, entry.factor) for entry in found)
    )
    return table(title, [left("arm"), *([left("")] if has_factors else []), *columns], rows)
