"""Curves of runs while they run, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from onpolicy.run.run_dir import logged
from onpolicy.utils.tables import left, table
from onpolicy.utils.timer import in_words

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 16
"""Characters of a curve."""
CURVES = {
    "reward": ("reward/mean",),
    "length": ("rollout/completion_length/mean",),
    "markers per 1k": ("epistemic/{lexicon}/rate_per_1k",),
}
"""Heading -> metric of every step; ``{lexicon}`` is the run's ``epistemic.lexicon``. Every evaluation set has a column too."""


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """The values as at most ``WIDTH`` blocks, scaled between two bounds."""
    if not values:
        return ""
    chosen = [values[i * len(values) // min(WIDTH, len(values))] for i in range(min(WIDTH, len(values)) - 1)]
    span = (high - low) or 1.0
    heights = ((v - low) / span * (len(BLOCKS) - 1) for v in [*chosen, values[-1]])
    return "".join(BLOCKS[round(min(max(h, 0.0), len(BLOCKS) - 1.0))] for h in heights)


def curves_table(runs: Sequence[tuple[str, Path, int, str]], title: str) -> Table:
    """A row for each run, a column for each curve; all rows of a column have the same scale.

    Args:
        runs: name, folder, total steps, and the lexicon that is followed
        title: of the table
    """
    found = [(name, steps, followed, logged(folder)) for name, folder, steps, followed in runs]
    sets = dict.fromkeys(
        metric for *_, rows in found for row in rows for metric in row
        if metric.startswith("eval/") and "/avg@" in metric and metric.count("/") == 2
    )  # fmt: skip
    columns = CURVES | {metric.split("/")[1]: (metric,) for metric in sets}
    series = [
        [[row[m] for row in rows for m in (name.format(lexicon=followed) for name in names) if m in row] for names in columns.values()]
        for _, _, followed, rows in found
    ]  # fmt: skip
    bounds = [_bounds([v for row in series for v in row[i]]) for i in range(len(columns))]
    return table(
        title,
        ["run", "step", *(left(head, wrap=False) for head in columns)],
        (
            (
                name,
                f"{rows[-1]['step'] if rows else 0:.0f}/{steps}",
                *(f"{sparkline(v, *b)} {v[-1]:.3g}" if v else "" for v, b in zip(own, bounds, strict=True)),
            )
            for (name, steps, _, rows), own in zip(found, series, strict=True)
        ),
    )


def standing(runs: Sequence[tuple[str, Path, int, str]], ended: int, begun_at: int, seconds: float) -> str:
    """One line: how many runs have ended, how many of their steps are done, and how long the others will take.

    Args:
        runs: as for ``curves_table``
        ended: runs that have ended
        begun_at: steps of these runs that were done when the sweep began
        seconds: since then
    """
    done, steps = steps_done(runs), sum(total for _, _, total, _ in runs)
    text = f"{ended}/{len(runs)} runs, step {done}/{steps} of all"
    return text + (f", about {in_words(seconds * (steps - done) / (done - begun_at))} left" if done > begun_at else "")


def steps_done(runs: Sequence[tuple[str, Path, int, str]]) -> int:
    """Of all runs together."""
    return sum(int(rows[-1]["step"]) for _, folder, _, _ in runs if (rows := logged(folder)))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 1.0)
