"""``onpolicy analyze ...``: each prints a table and, where asked, writes JSON."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from onpolicy.config.registry import ConfigError
from onpolicy.config.resolve import ResolvedConfig, resolve
from onpolicy.config.schema import load
from onpolicy.contracts import keep_to_contracts
from onpolicy.epistemic.ids import LexiconError
from onpolicy.experiments.analysis.pressure import Pressure, pressures
from onpolicy.experiments.analysis.probes import Probe, Prober
from onpolicy.experiments.analysis.session import session
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display
from onpolicy.run.preflight import first_rollouts
from onpolicy.trainer.build import tokens_of
from onpolicy.trainer.trainer import LocalTrainer
from onpolicy.utils.terminal import plain

MARGIN = 64
"""Tokens for words that are put into an answer."""


def analyze_pressure(config_path: Path, overrides: Sequence[str], output: Path | None) -> int:
    """Prints what the config's loss would do to each lexicon's markers."""
    found, rollouts = measure_pressure(resolve(load(config_path, overrides)))
    Console().print(pressure_table(found))
    write(output, config_path, overrides, rollouts=rollouts, pressure={k: asdict(v) for k, v in found.items()})
    return 0


def measure_pressure(resolved: ResolvedConfig) -> tuple[dict[str, Pressure], int]:
    """By lexicon, and the number of rollouts: one step's, sampled from the reference model.

    Raises:
        LexiconError: no lexicon has a marker that is one token of the model's tokenizer.
    """
    keep_to_contracts(resolved)
    with tempfile.TemporaryDirectory() as folder:
        run = assemble(resolved, Path(folder), Display(1))
        try:
            examples = first_rollouts(run, resolved)
            trainer = run.trainer
            assert isinstance(trainer, LocalTrainer)
            ids = tokens_of(run.log.renderer.tokenizer, resolved.config.epistemic.lexicons)
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


def analyze_probes(
    config_path: Path, overrides: Sequence[str], output: Path | None, problems: int, continuations: int
) -> int:
    """Leaves out, injects and bans doubt in the model's own answers and prints what each does to the score.

    Raises:
        ConfigError: the config has no reward.
        LexiconError: the lexicon has no marker that is one token of the model's tokenizer.
    """
    resolved = resolve(load(config_path, overrides))
    if not resolved.rewards:
        raise ConfigError("analyze probes: wants a reward that says what is right")
    with session(resolved, room=resolved.generator.settings.max_tokens + MARGIN) as s:
        probe = Prober(
            generator=s.generator,
            scorer=s.scorer,
            renderer=s.model.renderer,
            lexicon=resolved.config.epistemic.lexicon,
            window=s.model.max_model_len,
            continuations=continuations,
            seed=resolved.config.seed,
        )
        found = probe(s.prompts[:problems])
    Console().print(probes_table(found))
    write(output, config_path, overrides, probes=[asdict(p) for p in found])
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


def write(output: Path | None, config_path: Path, overrides: Sequence[str], **found: Any) -> None:
    if output is not None:
        report = {"config": str(config_path), "overrides": list(overrides)} | found
        output.write_text(json.dumps(report, indent=1) + "\n")
