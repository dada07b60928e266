"""``onpolicy analyze contexts``: what seeing more does to the model's own answers. It *generates* under each context, nothing is trained.

Section 3 of arXiv 2603.24472 (its table 1) for any model, dataset and contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onpolicy.annotation.build import build_queries
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.experiments.analysis.context_answers import answer_with_contexts
from onpolicy.experiments.analysis.context_rows import ContextRow, context_rows
from onpolicy.experiments.analysis.pass_rates import PassRates, within_pass_rates
from onpolicy.experiments.analysis.plot import draw_contexts, drawing_library
from onpolicy.experiments.analysis.richness import richness
from onpolicy.experiments.analysis.session import session, write_findings
from onpolicy.run.check_run import training_command
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.stats import Estimate
from onpolicy.utils.tables import table, with_note
from onpolicy.utils.terminal import plain, print_next

MOST_LEXICONS = 6
"""Columns of the table; the file has all."""


@dataclass(frozen=True)
class ContextMeasurement:
    """What was measured, and on which problems."""

    rows: Sequence[ContextRow]
    pass_rates: PassRates
    asked_for: int
    """Problems."""

    def as_json(self) -> dict[str, Any]:
        """Means, differences and every problem."""
        return {"pass_rates": list(self.pass_rates), "rows": [row_as_json(row) for row in self.rows]}


def analyze_contexts(
    config_path: Path,
    overrides: Sequence[str],
    output: Path | None,
    drawing: Path | None,
    problems: int,
    pass_rates: PassRates,
) -> int:
    """Generates under every context of the config and prints accuracy, length, markers and information gain of each."""
    if drawing is not None:
        drawing_library(drawing)  # before hours of sampling
    found = measure_contexts(resolve(load(config_path, overrides)), problems, pass_rates)
    console = Console()
    for shown in contexts_tables(found):
        console.print(shown)
    write_findings(output, config_path, overrides, **found.as_json())
    if drawing is not None:
        draw_contexts(found.rows, drawing)
        console.print(plain(drawing), soft_wrap=True)
    print_next(training_command(config_path, overrides))
    return 0


def measure_contexts(resolved: ResolvedConfig, problems: int, pass_rates: PassRates) -> ContextMeasurement:
    """A row without context, and one for each context.

    Raises:
        ConfigError: the config has no context or no reward, or no problem's pass rate lies within the bounds.
    """
    if not resolved.contexts or not resolved.rewards:
        raise ConfigError(
            "analyze contexts: expected contexts to compare and a reward that says which answers are correct; got "
            f"{len(resolved.contexts)} contexts and {len(resolved.rewards)} rewards"
        )
    seed = resolved.config.seed
    with session(resolved, with_contexts=True) as s:
        chosen = within_pass_rates(
            s.prompts,
            generator=s.generator,
            scorer=s.scorer,
            pass_rates=pass_rates,
            problems=problems,
            seed=seed,
            note=s.display.note,
        )
        without_context = list(chosen)
        if not without_context:
            low, high = pass_rates
            raise ConfigError(
                f"analyze contexts: no problem has a pass rate between {low:g} and {high:g}; widen --pass-rate"
            )
        with_contexts = answer_with_contexts(
            without_context,
            {context: plugin.bind() for context, plugin in resolved.contexts.items()},
            generator=s.generator,
            scorer=s.scorer,
            queries=build_queries(resolved, s.model, s.prompts, s.generator, s.scorer),
            seed=seed,
        )
    gains = richness(resolved, s.model, without_context, with_contexts)
    lexicons = resolved.config.epistemic.lexicons or ["paper10", "self_doubt"]
    rows = context_rows(without_context, with_contexts, gains, lexicons, s.model.renderer.split_thinking)
    return ContextMeasurement(rows, pass_rates, problems)


def row_as_json(row: ContextRow) -> dict[str, Any]:
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


def contexts_tables(found: ContextMeasurement) -> Iterator[Table]:
    """The paper's table 1 with the information gain of each context, and marker rates by lexicon."""
    problems = found.rows[0].problems
    fewer = "" if problems >= found.asked_for else f" ({found.asked_for} asked for)"
    yield table(
        f"the model's own answers under each context; mean over {problems} problems{fewer}, below it the 95 % bootstrap interval",
        [
            "context",
            "accuracy",
            "tokens",
            "paper's\ncount",
            "paper's\nper 1k",
            "cut off",
            "tells\nnats",
            "disowns\nnats",
        ],
        ([_name(row, problems), *_paper_cells(row)] for row in found.rows),
        lines=True,
        padding=0,
    )
    rates = [m for m in found.rows[0].measures if m.startswith("rate/")][:MOST_LEXICONS]
    if rates:
        yield table(
            "markers per 1,000 tokens, whole words, by lexicon",
            ["context", *(rate.removeprefix("rate/") for rate in rates)],
            ([_name(row, problems), *(_cell(row.mean(m)) for m in rates)] for row in found.rows),
            lines=True,
            padding=0,
        )


def _name(row: ContextRow, problems: int) -> str:
    return with_note(row.context, "" if row.problems == problems else f"{row.problems} problems")


def _paper_cells(row: ContextRow) -> Iterator[str]:
    yield from (_cell(row.mean(m)) for m in ("score", "tokens", "paper_count", "paper_per_1k"))
    yield f"{row.mean('truncated').mean:.0%}"
    yield _cell(row.gain.with_context) if row.gain else "–"
    yield _cell(row.gain.without_context) if row.gain and row.gain.without_context else "–"


def _cell(value: Estimate) -> str:
    return with_note(f"{value.mean:.3g}", f"{_short(value.low)}…{_short(value.high)}")


def _short(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.2g}"
