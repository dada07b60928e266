"""``onpolicy analyze contexts``: measures, prints, draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onpolicy.annotation.build import build_queries
from onpolicy.config.registry import ConfigError
from onpolicy.config.resolve import ResolvedConfig, resolve
from onpolicy.config.schema import load
from onpolicy.experiments.analysis.collect import Band, within_band
from onpolicy.experiments.analysis.commands import write
from onpolicy.experiments.analysis.contexts import Row, rows
from onpolicy.experiments.analysis.guided import guide
from onpolicy.experiments.analysis.richness import richness
from onpolicy.experiments.analysis.session import session
from onpolicy.utils.stats import Measured
from onpolicy.utils.terminal import plain

MOST_LEXICONS = 6
"""Columns of the table; the file has all."""


@dataclass(frozen=True)
class Found:
    """What was measured, and on how much."""

    rows: Sequence[Row]
    band: Band
    wanted: int

    def as_json(self) -> dict[str, Any]:
        """Means, differences and every problem."""
        return {"band": list(self.band), "rows": [row_as_json(row) for row in self.rows]}


def analyze_contexts(
    config_path: Path, overrides: Sequence[str], output: Path | None, drawing: Path | None, problems: int, band: Band
) -> int:
    """Generates under every context of the config and prints score, length, markers and information of each."""
    if drawing is not None:
        drawing_library(drawing)  # before hours of sampling
    found = measure_contexts(resolve(load(config_path, overrides)), problems, band)
    console = Console()
    for table in contexts_tables(found):
        console.print(table)
    write(output, config_path, overrides, **found.as_json())
    if drawing is not None:
        draw(found.rows, drawing)
        console.print(plain(drawing), soft_wrap=True)
    return 0


def measure_contexts(resolved: ResolvedConfig, problems: int, band: Band) -> Found:
    """A row without context, and one for each.

    Raises:
        ConfigError: the config has no context or no reward, or no problem's solve rate lies within the band.
    """
    if not resolved.contexts or not resolved.rewards:
        raise ConfigError("analyze contexts: wants contexts to compare and a reward that says what is right")
    seed = resolved.config.seed
    with session(resolved, guided=True) as s:
        unguided = list(
            within_band(
                s.prompts,
                generator=s.generator,
                scorer=s.scorer,
                band=band,
                problems=problems,
                seed=seed,
                note=s.display.note,
            )
        )
        if not unguided:
            raise ConfigError(
                f"analyze contexts: no problem is solved between {band[0]:g} and {band[1]:g} of the time; widen --band"
            )
        guided = guide(
            unguided,
            {context: plugin.bind() for context, plugin in resolved.contexts.items()},
            generator=s.generator,
            scorer=s.scorer,
            queries=build_queries(resolved, s.model, s.prompts, s.generator, s.scorer),
            seed=seed,
        )
    gains = richness(resolved, s.model, unguided, guided)
    lexicons = resolved.config.epistemic.lexicons or ["seed10", "A"]
    return Found(rows(unguided, guided, gains, lexicons, s.model.renderer.split_thinking), band, problems)


def row_as_json(row: Row) -> dict[str, Any]:
    measures = row.measures
    return {
        "context": row.context,
        "problems": row.problems,
        "samples": row.samples,
        "mean": {m: asdict(row.mean(m)) for m in measures},
        "difference": {m: asdict(row.difference(m)) for m in measures},
        "gain": row.gain and asdict(row.gain),
        "by_problem": row.by_problem,
    }


def contexts_tables(found: Found) -> list[Table]:
    """The paper's table 1 with what each context tells, and our counts by lexicon."""
    problems = found.rows[0].problems
    fewer = "" if problems >= found.wanted else f" ({found.wanted} wanted)"
    first = _table(f"the model's own answers under each context; mean over {problems} problems{fewer}, 95 % below")
    for head in ("score", "tokens", "paper's\ncount", "paper's\nper 1k", "cut off", "tells\nnats", "disowns\nnats"):
        first.add_column(head, justify="right")
    second = _table("markers per 1,000 tokens, whole words, by lexicon")
    rates = [m for m in found.rows[0].measures if m.startswith("rate/")][:MOST_LEXICONS]
    for measure in rates:
        second.add_column(plain(measure.removeprefix("rate/")), justify="right")
    for row in found.rows:
        name = plain(row.context) + ("" if row.problems == problems else f"\n[dim]{row.problems} problems[/dim]")
        cells = [_cell(row.mean(m)) for m in ("score", "tokens", "paper_count", "paper_per_1k")]
        gain = row.gain
        tells = _cell(gain.guided) if gain else "–"
        disowns = _cell(gain.unguided) if gain and gain.unguided else "–"
        first.add_row(name, *cells, f"{row.mean('truncated').mean:.0%}", tells, disowns)
        second.add_row(name, *(_cell(row.mean(m)) for m in rates))
    return [first, second] if rates else [first]


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True, padding=(0, 0))
    table.add_column("context", overflow="fold")
    return table


def _cell(value: Measured) -> str:
    return f"{value.mean:.3g}\n[dim]{_short(value.low)}…{_short(value.high)}[/dim]"


def _short(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.2g}"


def drawing_library(path: Path) -> Any:
    """Raises ConfigError where it is not installed, or does not know the drawing's ending."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot: drawing needs matplotlib: pip install 'onpolicy[plot]'") from error
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise ConfigError(f"--plot: got {str(path)!r}, wanted a file that ends in one of .{', .'.join(known)}")
    return Figure


def draw(measured: Sequence[Row], path: Path) -> None:
    """Score, length and markers by context, as the paper's table 1, poorest context first; the ending says the format."""
    panels = {
        "score": "share right",
        "tokens": "tokens",
        "paper_count": "markers a response",
        "paper_per_1k": "markers per 1k tokens",
    }
    figure = drawing_library(path)(figsize=(11, 0.6 + 0.45 * len(measured)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    ordered = sorted(measured, key=lambda row: row.gain.guided.mean if row.gain else float("-inf"), reverse=True)
    for panel, (measure, title) in zip(axes, panels.items(), strict=True):
        values = [row.mean(measure) for row in ordered]
        errors = [[v.mean - v.low for v in values], [v.high - v.mean for v in values]]
        panel.barh(
            [row.context for row in ordered], [v.mean for v in values], xerr=errors, color="#4c72b0", ecolor="#333333"
        )
        panel.set_title(title, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
