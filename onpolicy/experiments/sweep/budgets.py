"""What arms cost in tokens: sampled, read by teachers, trained on; in all, a run, and against the first arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Table

from onpolicy.run.run_dir import logged
from onpolicy.types import Metrics
from onpolicy.utils.terminal import plain

Run = tuple[str, str, int, Path]
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


def budgets(runs: Sequence[Run], reference: str) -> list[Budget]:
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
    table = Table(title="tokens a run, mean over seeds; times the first arm's", title_justify="left")
    kinds, crossed = dict.fromkeys(b.kind for b in found), any(b.cross for b in found)
    for head in ("arm", *([""] if crossed else []), *kinds):
        table.add_column(plain(head), justify="left" if head in ("arm", "") else "right", overflow="fold")
    for arm, cross in dict.fromkeys((b.arm, b.cross) for b in found):
        cells = {b.kind: b for b in found if (b.arm, b.cross) == (arm, cross)}
        names = [plain(arm), *([plain(cross)] if crossed else [])]
        table.add_row(*names, *(_cell(cells[kind]) if kind in cells else "–" for kind in kinds))
    return table


def _cell(budget: Budget) -> str:
    times = "" if budget.relative is None else f" [dim]×{budget.relative:.2f}[/dim]"
    return f"{budget.mean:,.0f}{times}"
