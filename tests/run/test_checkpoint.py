"""Checkpoints of models whose files have other names than their parameters, and those that are not of this model.

1. a run with such a model goes on as if it had never stopped, in one process and over DeepSpeed; 2. a state that lacks a tensor, or has
one of another shape, is refused and not filled with random numbers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onpolicy.utils.errors import CheckpointError
from tests.runs import metrics, run_here, write_config
from tests.tiny import random_examples, tiny_model_dir
from tests.trainer.test_trainer import trainer


def goes_on(folder: Path, family: str, *options: str) -> None:
    tiny_model_dir(folder / "model", family)
    config = write_config(folder)
    for run, parts in (("parts", ("2", "3")), ("whole", ("3",))):
        for steps in parts:
            assert run_here(config, f"run_dir={folder / run}", f"steps={steps}", *options) == 0
    assert metrics(folder / "parts") == metrics(folder / "whole")


@pytest.mark.parametrize("family", ["qwen3_moe", "phimoe", "gpt_neox"])
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, family: str) -> None:
    goes_on(tmp_path, family)


@pytest.mark.deepspeed
def test_a_run_over_deepspeed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 3}}')
    goes_on(tmp_path, "qwen3_moe", "trainer.name=deepspeed", f"trainer.config={tmp_path / 'zero.json'}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("weights/model.norm.weight"), r"holds no 'weights/model\.norm\.weight'"),
        (lambda tensors: tensors.update({"weights/model.norm.weight": torch.ones(3)}), r"is not of this model.*\(3\)"),
        (
            lambda tensors: tensors.update({"optimizer/model.norm.weight/exp_avg": torch.ones(3)}),
            r"not of this model.*\(3\)",
        ),
        (
            lambda tensors: tensors.pop("optimizer/model.norm.weight/exp_avg"),
            r"holds no 'optimizer/model\.norm\.weight/exp_avg",
        ),
    ],
    ids=["missing", "another shape", "another moment", "half the moments"],
)
def test_a_state_of_another_model_is_refused(tmp_path: Path, change, said: str) -> None:  # type: ignore[no-untyped-def]
    one, other = trainer(), trainer()
    one.step(random_examples(2))
    one.save(tmp_path)()
    (file,) = (tmp_path / "state").glob("rank-*")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=said):
        other.load_state(tmp_path, one.state())
