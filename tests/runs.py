"""A whole run, small enough for tests: a tiny model in a folder, a config file, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.cli import main
from onpolicy.run.checkpoint import Checkpoint, Checkpoints, Write, write_state
from onpolicy.types import Metrics
from tests.tiny import tiny_model_dir

ROOT = Path(__file__).parents[1]
VOLATILE = ("time/", "pipeline/", "memory/", "tokens_per_second")
"""Metrics that measure the machine."""


def write_config(folder: Path, **changes: Any) -> Path:
    """A config of a run of three steps with the transformers generator; dotted changes are given as overrides instead."""
    model = folder / "model"
    if not model.exists():
        tiny_model_dir(model)
    (folder / "data.jsonl").write_text("".join(json.dumps(row(a, b)) + "\n" for a in range(3) for b in range(4)))
    config: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": {"name": "file", "path": str(folder / "data.jsonl"), "prompts_per_step": 2},
        "generator": {"name": "transformers", "group_size": 3, "max_tokens": 8},
        "rewards": [{"name": "tests.runs:length_reward"}],
        "contexts": {"teacher": {"name": "reference_solution"}},
        "teacher": {"name": "ema", "ema_decay": 0.9},
        "objective": [{"name": "distill", "divergence": "forward_kl"}, {"name": "policy_gradient", "weight": 0.1}],
        "trainer": {"lr": 1e-3, "micro_batch_tokens": 200},
        "logging": {"trackers": ["jsonl"]},
        "checkpoint": {"every": 1},
        "steps": 3,
    }
    config.update(changes)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_here(folder: Path, monkeypatch: pytest.MonkeyPatch, config: Mapping[str, Any]) -> Path:
    """A config that is only checked, in a folder that becomes the current one, with the data file ``d.jsonl`` that it may name."""
    monkeypatch.chdir(folder)
    (folder / "d.jsonl").write_text(json.dumps(row(1, 1)))
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(dict(config)))
    return path


def row(a: int, b: int) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"{a} + {b}?"}],
        "answer": str(a + b),
        "solution": f"{a} + {b} = {a + b}",
        "data_source": "sums",
    }


def length_reward(completion: str) -> float:
    """Differs between rollouts of a random model, so that there are advantages."""
    return (len(completion) % 7) / 7


def held(completion: str, *, hold: str | None = None, after: str = "checkpoints/step-000001") -> bool:
    """A reward that waits for as long as the file ``hold`` exists, from when the run has written ``after``: by default what step 1 saves.

    The run's folder is that of its log, which is its standard output: so it is in a sweep.
    """
    written = Path(os.readlink("/proc/self/fd/1")).parent / after
    while hold is not None and written.exists() and Path(hold).exists():
        time.sleep(0.02)
    return len(completion) % 2 == 0


class CountingTracker:
    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.steps += 1

    def close(self) -> None:
        (self.folder / "count").write_text(f"{self.steps} steps")


def counting_tracker(run_dir: Path, resume_at: int) -> CountingTracker:
    return CountingTracker(run_dir)


def run_here(config: Path, *overrides: str) -> int:
    return main(["train", str(config), *overrides])


def state_alone(state: Mapping[str, Any] | None = None) -> Callable[[Path], Callable[[], None]]:
    """Writes the checkpoint of a run without a trainer."""

    def write(folder: Path) -> Callable[[], None]:
        write_state(folder, state or {})
        return lambda: None

    return write


def save(checkpoints: Checkpoints, step: int, write: Write, metrics: Metrics) -> Checkpoint:
    """Writes one checkpoint and waits for it."""
    checkpoints.begin(step, write, metrics)
    checkpoints.wait()
    return next(c for c in checkpoints.all() if c.step == step)


def on_ranks(ranks: int, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A module on so many ranks of torchrun, each with one thread."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d",
                "--rdzv-endpoint", "127.0.0.1:0"]  # fmt: skip
    return subprocess.run(
        [sys.executable, *launcher, "-m", module, *arguments],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def start(config: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "onpolicy", "train", str(config), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )


def wait_for_a_step(process: subprocess.Popen[str], run: Path) -> None:
    """Returns when the run has logged its first step."""
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.1)


def metrics(run: Path) -> list[dict[str, float]]:
    """One dictionary a step, without what measures the machine."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not any(part in k for part in VOLATILE)} for row in rows]
