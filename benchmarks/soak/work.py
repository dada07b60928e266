"""What a soak trains: a tiny model, a few sums, and a config with every role in processes of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.workers import model_folder

MODEL = "3m"
TRAINERS = 2
"""Ranks of the trainer."""
PROMPTS_PER_STEP, GROUP, STALENESS, PATIENCE = 4, 2, 1, 20.0


@dataclass(frozen=True)
class Work:
    """What is to be done, and what the checks must know of it."""

    steps: int = 200
    seed: int = 0
    generator: str = "vllm"
    problems: int = 40
    """A multiple of the prompts of a step."""
    patience: float = PATIENCE


def prepare(work: Work, folder: Path) -> Path:
    """Model, problems and config in this folder; returns the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problems.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(work.problems)))
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config(work, folder, model_folder(MODEL, folder / "model"))))
    (folder / "zero2.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    return path


def row(number: int) -> dict[str, Any]:
    a, b = divmod(number, 7)
    return {
        "id": f"sum/{number}",
        "prompt": [{"role": "user", "content": f"What is {a} + {b}?"}],
        "answer": str(a + b),
        "solution": f"{a} + {b} = {a + b}",
    }


def config(work: Work, folder: Path, model: str) -> dict[str, Any]:
    trainer: dict[str, Any] = {"name": "local", "lr": 1e-4}
    if TRAINERS:
        trainer |= {"name": "deepspeed", "config": str(folder / "zero2.json")}
    generator: dict[str, Any] = {
        "name": work.generator,
        "group_size": GROUP,
        "max_tokens": 16,
        "max_staleness": STALENESS,
    }
    if work.generator == "vllm":
        generator |= {"max_num_seqs": 8, "enforce_eager": True}
    return {
        "model": {"path": model},
        "data": {"name": "file", "path": str(folder / "problems.jsonl"), "prompts_per_step": PROMPTS_PER_STEP},
        "generator": generator,
        "rewards": [{"name": "benchmarks.soak.work:length"}],
        "contexts": {"teacher": {"name": "reference_solution"}},
        "teacher": {"name": "ema", "ema_decay": 0.9},
        "objective": [{"name": "distill", "divergence": "forward_kl"}, {"name": "policy_gradient", "weight": 0.1}],
        "trainer": trainer,
        "distributed": {
            "num_generators": 2, "num_trainers": TRAINERS, "num_reward_workers": 1, "heartbeat_timeout_s": work.patience,
            "max_restarts": 1000,
        },
        "epistemic": {"lexicons": ["self_doubt"]},
        "guards": [],
        "preflight": {"enabled": False},
        "logging": {"trackers": ["jsonl"], "samples": PROMPTS_PER_STEP * GROUP, "tokens_every": 0},
        "checkpoint": {"every": 5},
        "steps": work.steps,
        "seed": work.seed,
    }  # fmt: skip


def length(completion: str) -> float:
    """Differs between rollouts of a random model, so that there is something to learn."""
    return (len(completion) % 7) / 7
