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


@pytest.mark.slow
def test_a_run_with_vllm_and_its_continuation(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    output = finish(config, f"run_dir={tmp_path / 'whole'}")
    assert "generator and trainer agree" in output and "what changed" in output
    whole = metrics(tmp_path / "whole")
    assert len(whole) == 3 and all(row["rollout/logprob_gap"] < 1e-5 for row in whole)
    finish(config, f"run_dir={tmp_path / 'parts'}", "steps=1")
    assert "resumed at step 1 of 3" in finish(config, f"run_dir={tmp_path / 'parts'}")
    assert metrics(tmp_path / "parts") == whole
