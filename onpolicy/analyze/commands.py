"""``onpolicy analyze ...``: each prints a table and, where asked, writes JSON."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from onpolicy.analyze.pressure import Pressure, pressures
from onpolicy.assemble import assemble, first_rollouts, tokens_of
from onpolicy.backends.local import LocalTrainer
from onpolicy.config import load
from onpolicy.contracts import keep_to_contracts
from onpolicy.display import Display
from onpolicy.epistemic.ids import LexiconError
from onpolicy.plan import plan


def analyze_pressure(config_path: Path, overrides: Sequence[str], output: Path | None) -> int:
    """Samples one step's rollouts from the start model and prints what the loss would do to each lexicon's markers.

    Raises:
        LexiconError: no lexicon has a marker that is one token of the model's tokenizer.
    """
    checked = plan(load(config_path, overrides))
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
            found = pressures(trainer, examples)
        finally:
            run.close()
    Console().print(pressure_table(found))
    if output is not None:
        report = {"config": str(config_path), "overrides": list(overrides), "rollouts": len(examples)}
        output.write_text(json.dumps(report | {"pressure": {k: asdict(v) for k, v in found.items()}}, indent=1) + "\n")
    return 0


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
        table.add_row(name, f"{p.relative:+.3g}", f"{p.said:+.3g}", f"{p.unsaid:+.3g}", f"{p.mass:.2e}", share)
    return table
