"""Whole runs with real vLLM: it trains, stays in step with the trainer, resumes to the last bit in another process, and its
rollouts go on under new weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display
from onpolicy.train import train
from tests.runs import metrics, run_here, start, write_config

VLLM = "generator={name: vllm, group_size: 3, max_tokens: 8, dtype: float32}"


def finish(config: Path, *overrides: str) -> str:
    process = start(config, VLLM, *overrides)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.mark.vllm
def test_a_run_with_vllm_and_its_continuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert run_here(config, VLLM, f"run_dir={tmp_path / 'whole'}") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "generator and trainer agree" in output and "first step" in output
    whole = metrics(tmp_path / "whole")
    assert len(whole) == 3 and all(row["rollout/logprob_gap"] < 1e-5 for row in whole)
    assert run_here(config, VLLM, f"run_dir={tmp_path / 'parts'}", "steps=1") == 0
    assert "resumed at step 1 of 3" in finish(config, f"run_dir={tmp_path / 'parts'}")
    assert metrics(tmp_path / "parts") == whole


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "weight syncs send the adapters alone (rank 4)"),
        (["trainer.lora_targets=[embed_tokens, q_proj]"], "adapters merged: model.embed_tokens is not a linear layer"),
    ],
)
def test_vllm_is_asked_for_contexts_and_gets_adapters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """Questions longer than any student prompt, and a student whose adapters live in the trainer; it goes on from a checkpoint."""
    config = write_config(
        tmp_path, contexts={"teacher": {"name": "regenerated", "samples": 2}}, teacher={"name": "frozen"}
    )
    own = ["trainer.lora_rank=4", "trainer.lr=0.01", "rendering.max_prompt_tokens=60"]
    for steps in (2, 4):
        assert run_here(config, VLLM, f"run_dir={tmp_path / 'run'}", f"steps={steps}", *own, *options) == 0
        assert said in " ".join(capsys.readouterr().out.split())
    rows = metrics(tmp_path / "run")
    assert len(rows) == 4
    assert all(row["rollout/logprob_gap"] < 1e-5 and row["context/teacher/share"] == 1.0 for row in rows)
    assert rows[-1]["teacher/teacher/gap"] != rows[0]["teacher/teacher/gap"]


@pytest.mark.vllm
def test_arguments_of_vllm_itself(tmp_path: Path) -> None:
    """They reach the engine, which samples as before; a value that vLLM refuses is the config's."""
    config, blocks = write_config(tmp_path), "generator.engine_args={block_size: 32, num_gpu_blocks_override: 40}"
    run = assemble(resolve(load(config, [VLLM, blocks])), tmp_path / "run", Display(3))
    try:
        cache = run.generator._engine._llm.llm_engine.vllm_config.cache_config  # type: ignore[attr-defined]
        assert (cache.block_size, cache.num_gpu_blocks) == (32, 40)
        train(run)
    finally:
        run.close()
    assert all(row["rollout/logprob_gap"] < 1e-5 for row in metrics(tmp_path / "run"))
    process = start(config, VLLM, "generator.engine_args={kv_cache_dtype: fp9}", f"run_dir={tmp_path / 'refused'}")
    output, _ = process.communicate()
    assert (
        process.returncode == 2
        and "generator.engine_args: vLLM does not start with {'kv_cache_dtype': 'fp9'}" in output
    )


@pytest.mark.vllm
@pytest.mark.parametrize("rank", [0, 4])
def test_rollouts_that_go_on_under_new_weights(tmp_path: Path, rank: int) -> None:
    """Training ends first here, so rollouts are in the middle when the weights change. They change by nothing, so what
    separates sampler and trainer is what an engine that mixed up its caches would make. With adapters they end with the old ones."""
    generator = {"name": "vllm", "group_size": 3, "max_tokens": 120, "max_staleness": 2}
    config = write_config(tmp_path, generator=generator, checkpoint={"every": 0}, steps=8)
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "trainer.lr=1e-12", f"trainer.lora_rank={rank}") == 0
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(row["rollout/staleness/max"] <= 2 for row in rows) and rows[-1]["rollout/staleness/max"] > 0
    assert (max(row["rollout/resumed"] for row in rows) > 0) == (rank == 0)
    assert max(row["rollout/logprob_gap"] for row in rows) < 1e-5
