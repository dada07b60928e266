"""What a weight sync sends, decided from the config: the adapters alone where all of them are on linear layers and the generator takes
them, or all weights, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.distributed.adapter_plan import AdapterPlan, adapter_plan
from onpolicy.models import open_model
from onpolicy.protocols import AdapterShape
from onpolicy.rollout import vllm_lora
from tests.runs import write_config
from tests.tiny import tiny_model_dir

LORA = "trainer.lora_rank=4"


def plan(folder: Path, *options: str, family: str = "qwen3") -> AdapterPlan:
    tiny_model_dir(folder / "model", family)
    resolved = resolve(load(write_config(folder), ["generator.name=vllm", *options]))
    return adapter_plan(resolved, open_model(resolved))


@pytest.fixture(autouse=True)
def any_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_lora, "takes_adapters", lambda architecture: architecture != "OPTForCausalLM")


def test_without_adapters_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert plan(tmp_path) == AdapterPlan()


def test_adapters_on_linear_layers_are_sent_alone(tmp_path: Path) -> None:
    """Those of a mixture of experts too, whose experts have none."""
    found = plan(tmp_path, LORA, "trainer.lora_targets=[k_proj, q_proj]", family="qwen3_moe")
    assert found == AdapterPlan(AdapterShape(4, ("k_proj", "q_proj")), "weight syncs send the adapters alone (rank 4)")


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("qwen3", ["trainer.lora_targets=[q_proj, embed_tokens]"], "model.embed_tokens is not a linear layer below the head"),
        ("llama", ["trainer.lora_targets=[lm_head]"], "lm_head is not a linear layer below the head"),
        ("qwen3_moe", [], "mlp.experts is not a linear layer below the head"),
        ("opt", ["trainer.lora_targets=[q_proj]"], "OPTForCausalLM takes no adapters"),
        ("qwen3", ["generator.name=transformers"], "generator.name=transformers takes no adapters"),
    ],
)  # fmt: skip
def test_all_others_are_merged_and_it_says_why(tmp_path: Path, family: str, options: list[str], reason: str) -> None:
    found = plan(tmp_path, LORA, *options, family=family)
    assert found.shape is None
    assert found.said.startswith("weight syncs send all weights, adapters merged: ") and reason in found.said
