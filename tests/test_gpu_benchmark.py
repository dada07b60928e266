"""``python -m benchmarks.gpu``: on a CPU every part runs, at a tiny shape; on a GPU the same command measures.

1. each part finds what is right on a CPU too: packed rows equal rows alone, the dtype asked for, weights that reach the engine; 2. a part
that fails, or runs out of memory, says why and the others go on; 3. the models are those of the shapes that they are named after.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import parts
from benchmarks.gpu.__main__ import run
from benchmarks.gpu.parts import PARTS, UPDATES
from benchmarks.gpu.shapes import WORKLOADS, model_folder, rollouts
from benchmarks.gpu.trl import trl_update
from benchmarks.peers.environment import peers_python
from onpolicy.experiments.forecast.shape import shape_of


@pytest.mark.process
@pytest.mark.vllm
@pytest.mark.deepspeed
def test_every_part_runs_here(tmp_path: Path) -> None:
    output = tmp_path / "lines.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = {line["part"]: line for line in map(json.loads, output.read_text().splitlines())}
    assert list(found) == list(PARTS) and not any("failed" in line for line in found.values())
    assert [part for part, line in found.items() if "not_run" in line] == ["trl"], (
        "which is not installed beside onpolicy"
    )
    assert (
        found["kernels"]["prefix_sharing"] and found["kernels"]["largest_difference"] < 0.1 * found["kernels"]["size"]
    )
    assert found["deepspeed"]["computes_in"] == ["bfloat16"]
    assert all(found["update"][name]["sampled_tokens_per_second"] > 0 for name in UPDATES)
    assert all(0 < found["update"][name]["forecast_gib"] < 1 for name in UPDATES)
    assert max(found["engine"]["logprob_gap_after_each_sync"]) < 1e-4 and len(found["engine"]["sync_seconds"]) == 5


@pytest.mark.nightly
@pytest.mark.process
def test_trls_update_of_the_same_size() -> None:
    """In the environment of the benchmarks' peers, which is made if it is not there."""
    found = trl_update(WORKLOADS["tiny"], python=str(peers_python()))
    assert found["seconds"] > 0 and found["sampled_tokens_per_second"] > 0
    assert abs(found["prompt_tokens"]["student"] - WORKLOADS["tiny"].prompt) < 16
    assert found["prompt_tokens"]["teacher"] > found["prompt_tokens"]["student"]


def test_a_part_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(workload: object) -> dict[str, object]:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setitem(parts.PARTS, "head", broken)  # type: ignore[arg-type]
    line = run("head", "tiny")
    assert line["failed"] == "ZeroDivisionError: by nothing" and any("broken" in at for at in line["where"])


def test_what_does_not_fit_is_told_and_the_rest_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def update(workload: object, examples: object, overrides: tuple[str, ...]) -> dict[str, object]:
        if "trainer.lora_rank=64" not in overrides:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return {"seconds": 1.0}

    monkeypatch.setattr(parts, "_update", update)
    found = parts.update(WORKLOADS["tiny"])
    assert found["LoRA"] == {"seconds": 1.0}
    assert found["live teacher"] == {"out_of_memory": "CUDA out of memory. Tried to allocate 2 GiB"}


@pytest.mark.parametrize(("name", "parameters"), [("0.6b", 0.596e9), ("8b", 8.19e9)])
def test_the_shapes_are_those_of_the_models(tmp_path: Path, name: str, parameters: float) -> None:
    shape = shape_of(model_folder(WORKLOADS[name], tmp_path))
    assert shape.parameters == pytest.approx(parameters, rel=0.01) and shape.rounded > 0
    tiny = rollouts(WORKLOADS["tiny"])
    assert len(tiny) == 8 and {len(e.rollout.completion_ids) for e in tiny} == {32}
    assert {len(e.teacher_prompt_ids["teacher"]) for e in tiny} == {24 + 32}
