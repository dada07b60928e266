"""A drawing of what was measured under each context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onpolicy.experiments.analysis.context_rows import ContextRow
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.ready import extra

PANELS = {
    "score": "accuracy",
    "tokens": "tokens",
    "paper_count": "markers per response",
    "paper_per_1k": "markers per 1k tokens",
}
"""Measure -> title."""


def drawing_library(path: Path) -> Any:
    """Raises ConfigError where it is not installed, or does not know the drawing's ending."""
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"--plot: drawing needs matplotlib: {extra('plot')}") from error
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise ConfigError(f"--plot: got {str(path)!r}, expected a file that ends in one of .{', .'.join(known)}")
    rcParams["svg.hashsalt"] = "onpolicy"  # the same drawing is the same file
    return Figure


def save_drawing(figure: Any, path: Path) -> None:
    """Without the day on which it was drawn."""
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_contexts(rows: Sequence[ContextRow], path: Path) -> None:
    """Accuracy, length and markers by context, as in the paper's table 1, poorest context first; the file's ending says the format."""
    figure = drawing_library(path)(figsize=(11, 0.6 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    ordered = sorted(rows, key=lambda row: row.gain.with_context.mean if row.gain else float("-inf"), reverse=True)
    for panel, (measure, title) in zip(axes, PANELS.items(), strict=True):
        values = [row.mean(measure) for row in ordered]
        errors = [[v.mean - v.low for v in values], [v.high - v.mean for v in values]]
        panel.barh(
            [row.context for row in ordered], [v.mean for v in values], xerr=errors, color="#4c72b0", ecolor="#333333"
        )
        panel.set_title(title, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    save_drawing(figure, path)
