"""Whole runs with real vLLM, in processes of their own: it trains, stays in step with the trainer, and resumes to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import metrics, start, write_config

VLLM = "generator={name: vllm, group_size: 3, max_tokens: 8, dtype: float32}"


def finish(config: Path, *overrides: str) -> str:
    process = start(config, VLLM, *overrides)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.vllm
def test_a_run_with_vllm_and_its_continuation(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    output = finish(config, f"run_dir={tmp_path / 'whole'}")
    assert "generator and trainer agree" in output and "what changed" in output
    whole = metrics(tmp_path / "whole")
    assert len(whole) == 3 and all(row["rollout/logprob_gap"] < 1e-5 for row in whole)
    finish(config, f"run_dir={tmp_path / 'parts'}", "steps=1")
    assert "resumed at step 1 of 3" in finish(config, f"run_dir={tmp_path / 'parts'}")
    assert metrics(tmp_path / "parts") == whole


@pytest.mark.vllm
def test_vllm_is_asked_for_contexts_and_gets_merged_adapters(tmp_path: Path) -> None:
    """Questions longer than any student prompt, and weights whose adapters live in the trainer alone."""
    config = write_config(
        tmp_path, contexts={"teacher": {"name": "regenerated", "samples": 2}}, teacher={"name": "frozen"}
    )
    finish(
        config,
        f"run_dir={tmp_path / 'run'}",
        "trainer.lora_rank=4",
        "trainer.lr=0.01",
        "rendering.max_prompt_tokens=60",
    )
    rows = metrics(tmp_path / "run")
    assert all(row["rollout/logprob_gap"] < 1e-5 and row["context/teacher/share"] == 1.0 for row in rows)
    assert rows[-1]["teacher/teacher/gap"] != rows[0]["teacher/teacher/gap"]
