"""Accuracy, length and markers by step: what the lab's figures are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onpolicy.experiments.lab.claims import LENGTH, PASS_RATE, RATE
from onpolicy.experiments.sweep.grid import Cell
from onpolicy.run.run_dir import logged


def curves_by_step(finished: Sequence[Cell]) -> list[dict[str, Any]]:
    """Accuracy, length and markers by step of every run: what the figures are drawn from."""
    kept = (PASS_RATE, LENGTH, RATE, "rollout/sampled_tokens")
    return [
        {"arm": c.arm, "factor": c.factor, "seed": c.seed}
        | {n: [[r["step"], round(r[n], 4)] for r in logged(c.folder) if n in r] for n in (*kept, *_scores(c.folder))}
        for c in finished
    ]


def _scores(folder: Path) -> list[str]:
    return sorted({n for row in logged(folder) for n in row if n.startswith("eval/") and n.endswith("/avg@4")})
