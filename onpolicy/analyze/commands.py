"""``onpolicy analyze ...``: each prints a table and, where asked, writes JSON."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from onpolicy.analyze.contexts import Row, compare_contexts
from onpolicy.analyze.pressure import Pressure, pressures
from onpolicy.analyze.probes import Probe, Prober
from onpolicy.assemble import assemble, build_generator, build_inquiry, build_judge, first_rollouts
from onpolicy.backends.local import LocalTrainer
from onpolicy.config import load
from onpolicy.contracts import keep_to_contracts
from onpolicy.display import Display
from onpolicy.epistemic.ids import LexiconError
from onpolicy.faults import Faults
from onpolicy.learning import tokens_of
from onpolicy.loading import Model, read_model, training_prompts
from onpolicy.plan import Plan, plan
from onpolicy.protocols import Generator
from onpolicy.registry import ConfigError
from onpolicy.scoring import Judge
from onpolicy.terminal import plain
from onpolicy.types import Prompt

MARGIN = 64
"""Tokens for words that are put into an answer."""
MOST_LEXICONS = 3
"""Columns of the table; the file has all."""


def analyze_pressure(config_path: Path, overrides: Sequence[str], output: Path | None) -> int:
    """Prints what the config's loss would do to each lexicon's markers."""
    found, rollouts = measure_pressure(plan(load(config_path, overrides)))
    Console().print(pressure_table(found))
    _write(output, config_path, overrides, rollouts=rollouts, pressure={k: asdict(v) for k, v in found.items()})
    return 0


def measure_pressure(checked: Plan) -> tuple[dict[str, Pressure], int]:
    """By lexicon, and the number of rollouts: one step's, sampled from the start model.

    Raises:
        LexiconError: no lexicon has a marker that is one token of the model's tokenizer.
    """
    keep_to_contracts(checked)
    with tempfile.TemporaryDirectory() as folder:
        run = assemble(checked, Path(folder), Display(1))
        try:
            examples = first_rollouts(run, checked)
            trainer = run.trainer
            assert isinstance(trainer, LocalTrainer)
            ids = tokens_of(run.renderer.tokenizer, checked.config.epistemic.lexicons)
            if not ids:
                raise LexiconError(
                    "epistemic.lexicons: none has a marker that is a single token of this model's tokenizer"
                )
            trainer.marker_ids |= {name: torch.tensor(i, device=trainer.device) for name, i in ids.items()}
            return pressures(trainer, examples), len(examples)
        finally:
            run.close()


def pressure_table(found: dict[str, Pressure]) -> Table:
    table = Table(
        title="suppression pressure: relative change of the markers' mass for a unit step on the logits; negative suppresses",
        title_justify="left",
    )
    for head in (
        "lexicon",
        "pressure",
        "where a marker was said",
        "where it could have been",
        "mass per token",
        "opportunities",
    ):
        table.add_column(head, justify="left" if head == "lexicon" else "right")
    for name, p in found.items():
        share = f"{p.opportunities} of {p.tokens}"
        table.add_row(plain(name), f"{p.relative:+.3g}", f"{p.said:+.3g}", f"{p.unsaid:+.3g}", f"{p.mass:.2e}", share)
    return table


@dataclass(frozen=True)
class Session:
    """A model that answers the config's problems, and a judge of its answers."""

    checked: Plan
    model: Model
    prompts: Sequence[Prompt]
    generator: Generator
    judge: Judge


@contextmanager
def session(checked: Plan, *, room: int = 0) -> Iterator[Session]:
    """With a progress bar, until the block ends.

    Args:
        checked: the config
        room: tokens by which answers may exceed ``generator.max_tokens``, the model's window permitting
    """
    model = read_model(checked, room=room)
    prompts = training_prompts(checked, model.renderer)
    display = Display(1)
    faults = Faults(display.note)
    generator = build_generator(checked, model, faults)
    generator.on_progress = display.progress
    judge = build_judge(checked, model, faults)
    try:
        with display:
            yield Session(checked, model, prompts, generator, judge)
    finally:
        generator.close()
        judge.close()


def analyze_contexts(
    config_path: Path, overrides: Sequence[str], output: Path | None, problems: int, band: tuple[float, float]
) -> int:
    """Generates under every context of the config and prints score, length and marker rates of each."""
    rows = measure_contexts(plan(load(config_path, overrides)), problems, band)
    Console().print(contexts_table(rows))
    _write(output, config_path, overrides, rows=[asdict(row) for row in rows])
    return 0


def measure_contexts(checked: Plan, problems: int, band: tuple[float, float]) -> list[Row]:
    """A row without context, and one for each.

    Raises:
        ConfigError: the config has no context or no reward, or no problem's solve rate lies within the band.
    """
    if not checked.contexts or not checked.rewards:
        raise ConfigError("analyze contexts: wants contexts to compare and a reward that says what is right")
    with session(checked) as s:
        rows = compare_contexts(
            s.prompts[:problems],
            {view: plugin.bind() for view, plugin in checked.contexts.items()},
            generator=s.generator,
            judge=s.judge,
            inquiry=build_inquiry(checked, s.model, s.prompts, s.generator, s.judge),
            lexicons=checked.config.epistemic.lexicons or ["seed10", "A"],
            seed=checked.config.seed,
            band=band,
        )
    if not rows:
        raise ConfigError(
            f"analyze contexts: no problem is solved between {band[0]:g} and {band[1]:g} of the time; widen --band"
        )
    return rows


def analyze_probes(
    config_path: Path, overrides: Sequence[str], output: Path | None, problems: int, continuations: int
) -> int:
    """Leaves out, injects and bans doubt in the model's own answers and prints what each does to the score.

    Raises:
        ConfigError: the config has no reward.
        LexiconError: the lexicon has no marker that is one token of the model's tokenizer.
    """
    checked = plan(load(config_path, overrides))
    if not checked.rewards:
        raise ConfigError("analyze probes: wants a reward that says what is right")
    with session(checked, room=checked.generator.frame.max_tokens + MARGIN) as s:
        probe = Prober(
            generator=s.generator,
            judge=s.judge,
            renderer=s.model.renderer,
            lexicon=checked.config.epistemic.lexicon,
            window=s.model.max_model_len,
            continuations=continuations,
            seed=checked.config.seed,
        )
        found = probe(s.prompts[:problems])
    Console().print(probes_table(found))
    _write(output, config_path, overrides, probes=[asdict(p) for p in found])
    return 0


def probes_table(probes: Sequence[Probe]) -> Table:
    table = Table(
        title="what doubt does to the model's own answers; differences by problem, 95 % below",
        title_justify="left",
        show_lines=True,
    )
    for head in ("arm", "against", "n", "right", "difference", "tokens"):
        table.add_column(head, justify="left" if head in ("arm", "against") else "right", no_wrap=head != "arm")
    for p in probes:
        differences = [f"{d.mean:+.3g}\n[dim]{d.low:+.2g} to {d.high:+.2g}[/dim]" for d in (p.difference, p.tokens)]
        table.add_row(
            plain(p.arm), plain(p.against), f"{p.problems}\n[dim]{p.answers}[/dim]", f"{p.score.mean:.3f}", *differences
        )
    return table


def contexts_table(rows: Sequence[Row]) -> Table:
    table = Table(
        title="the model's own answers under each context; mean over problems, 95 % below",
        title_justify="left",
        show_lines=True,
    )
    lexicons = list(rows[0].rates)[:MOST_LEXICONS]
    for head in (
        "context",
        "n",
        "score",
        "tokens",
        "paper's\ncount",
        *(f"{plain(name)}\nper 1k" for name in lexicons),
        "cut\noff",
    ):
        table.add_column(head, justify="left" if head == "context" else "right", no_wrap=head == "context")
    for row in rows:
        cells = [row.score, row.tokens, row.paper_count, *(row.rates[name] for name in lexicons)]
        shown = [f"{c.mean:.3g}\n[dim]{c.low:.2g}–{c.high:.2g}[/dim]" for c in cells]
        table.add_row(plain(row.context), str(row.problems), *shown, f"{row.truncated:.0%}")
    return table


def _write(output: Path | None, config_path: Path, overrides: Sequence[str], **found: Any) -> None:
    if output is not None:
        report = {"config": str(config_path), "overrides": list(overrides)} | found
        output.write_text(json.dumps(report, indent=1) + "\n")
