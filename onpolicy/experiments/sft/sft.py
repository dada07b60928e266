"""``onpolicy sft``: the off-policy counterpart of a config, fine-tuning on the model's own correct answers.

Section 4 of arXiv 2603.24472 for any model, problems and context. Three arms start from the same model and learn from answers to the
same problems: *unguided*, written without a context; *guided*, written with the context in the prompt; *guided_equal_tokens*, which
the paper lacks: guided answers are shorter, so equal examples mean fewer tokens, and this arm repeats them until it has trained on as
many tokens as the unguided arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console

from onpolicy.config.load import to_yaml
from onpolicy.config.resolve import load_resolved
from onpolicy.config.schema import Config
from onpolicy.experiments.sft.traces import COLUMN, GUIDED, UNGUIDED, TraceRequest, collect, tokens, write_rows
from onpolicy.experiments.sweep.sweep import look_closer, sweep
from onpolicy.utils.disk import atomic_write
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.signals import resumable
from onpolicy.utils.terminal import plain, print_next

CONFIG, GRID = "config.yaml", "grid.yaml"
EQUAL = "guided_equal_tokens"


@dataclass(frozen=True)
class Training:
    """How each arm is trained."""

    epochs: int
    batch: int
    """Answers per step."""
    seeds: Sequence[int]


@resumable()
def sft(
    config_path: Path, overrides: Sequence[str], request: TraceRequest, training: Training, output: Path, jobs: int
) -> int:
    """Collects the traces, then trains and compares the arms; finished work is not repeated."""
    grid = prepare_sweep(config_path, overrides, request, training, output, Console())
    code = sweep(grid, output, (), jobs)
    if code == 0:
        print_next(look_closer(output))
    return code


def prepare_sweep(
    config_path: Path,
    overrides: Sequence[str],
    request: TraceRequest,
    training: Training,
    output: Path,
    console: Console,
) -> Path:
    """Writes the traces of every seed, and the grid that trains on them, under ``output``; returns the grid's path."""
    found = []
    for seed in training.seeds:
        folder = output / "traces" / f"seed-{seed}"
        resolved = load_resolved(config_path, [*overrides, f"seed={seed}"])
        if not resolved.eval_sets:
            raise ConfigError("eval.sets: empty; name at least one set on which the arms are compared")
        rows = collect(resolved, request, folder, lambda text: console.print(plain(text), highlight=False))
        found.append(rows)
        sizes = ", ".join(f"{name} {tokens(r)}" for name, r in rows.items())
        console.print(f"seed {seed}: {len(rows[GUIDED])} answers of each kind; tokens: {sizes}", highlight=False)
    examples = min(len(rows[GUIDED]) for rows in found)
    found = [{name: r[:examples] for name, r in rows.items()} for rows in found]
    for seed, rows in zip(training.seeds, found, strict=True):
        for name, r in rows.items():
            write_rows(_trained_on(output, seed) / f"{name}.jsonl", r)
    config = load_resolved(config_path, overrides).config
    atomic_write(output / CONFIG, to_yaml(config))
    made = sft_grid(config, training, output, found)
    if EQUAL not in made["arms"]:
        console.print(f"{EQUAL} would be {GUIDED} again: its answers are as many tokens", highlight=False)
    atomic_write(output / GRID, yaml.safe_dump(made, sort_keys=False))
    return output / GRID


def sft_grid(
    config: Config, training: Training, output: Path, found: Sequence[dict[str, list[dict[str, Any]]]]
) -> dict[str, Any]:
    """The arms, as ``onpolicy sweep`` reads them; the third one only where it differs from the second."""
    steps = max(1, round(training.epochs * len(found[0][GUIDED]) / training.batch))
    more = fmean(tokens(rows[UNGUIDED]) / tokens(rows[GUIDED]) for rows in found)
    arms = {
        UNGUIDED: _arm(UNGUIDED, steps, training, output),
        GUIDED: _arm(GUIDED, steps, training, output),
        EQUAL: _arm(GUIDED, max(1, round(steps * more)), training, output),
    }
    if arms[EQUAL] == arms[GUIDED]:  # guided answers are as long
        del arms[EQUAL]
    every = config.eval.every or max(arm["steps"] for arm in arms.values())
    return {
        "config": CONFIG,
        "seeds": list(training.seeds),
        "axes": ["data.path", "steps"],
        "arms": {name: arm | {"eval.every": every} for name, arm in arms.items()},
    }


def _trained_on(output: Path, seed: int | str) -> Path:
    """The folder of a seed's examples: for every seed as many as for the seed with the fewest."""
    return output.absolute() / "examples" / f"seed-{seed}"


def _arm(kind: str, steps: int, training: Training, output: Path) -> dict[str, Any]:
    path = _trained_on(output, "${seed}") / f"{kind}.jsonl"
    return {
        "data": {"name": "file", "path": str(path), "completions_column": COLUMN, "prompts_per_step": training.batch},
        "contexts": {},
        "spans": {},
        "teacher": {"name": "live"},
        "objective": [{"name": "cross_entropy"}],
        "steps": steps,
    }
