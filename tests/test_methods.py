"""Every shipped config takes a real step on a tiny model and changes its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.runs import metrics, run_here, write_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))
SMALL = ["data.prompts_per_step=3", "generator.name=transformers", "generator.max_tokens=8", "generator.group_size=4", "steps=1",
         "trainer.lr=1e-3", "trainer.warmup_steps=0", "logging.trackers=[jsonl]", "eval.every=0", "seed=3"]  # fmt: skip
WITH_SIGNAL = ["rewards=[tests.test_methods:often_right]"]


def often_right(completion: str) -> float:
    """1 for about half of a random model's rollouts."""
    return float(len(completion) % 2)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_step_of_every_config(path: Path, tmp_path: Path) -> None:
    write_config(tmp_path)
    overrides = [*SMALL, f"model.path={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}"]
    if yaml.safe_load(path.read_text())["data"]["name"] != "gym":
        overrides += [*WITH_SIGNAL, f"data={{name: file, path: {tmp_path / 'data.jsonl'}, prompts_per_step: 3}}"]
    assert run_here(path, *overrides) == 0
    (row,) = metrics(tmp_path / "run")
    assert row["train/grad_norm"] > 0 and row["train/skipped_updates"] == 0
    before, after = (
        AutoModelForCausalLM.from_pretrained(p) for p in (tmp_path / "model", tmp_path / "run/checkpoints/step-000001")
    )
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
