"""Checkpoints of models whose files have other names than their parameters: they are read through the parameters' own names.

1. every weight comes back to the last bit, tied ones under each name; 2. a run with such a model goes on as if it had never
stopped, in one process and over DeepSpeed; 3. a checkpoint that lacks a tensor is refused and not filled with random numbers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onpolicy.models import model_writer
from onpolicy.run.checkpoint import CheckpointError, read_weights
from tests.runs import metrics, run_here, write_config
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model, tiny_model_dir


@pytest.mark.parametrize("family", ["qwen3", "llama", *FAMILIES])
def test_weights_come_back_under_the_parameters_own_names(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model_writer(lambda: model.state_dict().items(), tiny_model(family, seed=1), byte_tokenizer())(tmp_path)
    own, found = model.state_dict(), read_weights(tmp_path)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


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


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    tiny_model_dir(tmp_path, "qwen3_moe")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of Qwen3MoeForCausalLM, e\.g\. 'model\.norm\.weight'"):
        read_weights(tmp_path)
