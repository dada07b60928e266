"""The student's adapters in a vLLM engine, apart from the weights that they are added to; with real vLLM.

1. over several versions, tokens and log-probs are those of an engine with the merged weights, also of prefixes that an older version has
cached, and of prompts that are scored; before the first version they are the base model's; 2. A and B are all that is asked of the trainer;
of the adapters that the engine had, only those in use are left, and no folder; 3. a rollout that is under way ends with the adapter that it
began with and says so, also where more versions are under way than the engine holds; 4. what vLLM cannot take apart is known without
starting it: its sources are read as vLLM itself would; 5. the folder lies in memory where there is room.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from onpolicy.protocols import AdapterShape
from onpolicy.rollout import vllm_lora
from onpolicy.rollout.vllm_lora import RANKS, adapter_arguments, adapter_folder, takes_adapters, why_no_adapter
from onpolicy.trainer.lora import LoraSettings, adapter_shape
from onpolicy.trainer.student_weights import StudentWeights
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.types import Sampling
from tests.rollout.test_generators import PROMPTS, arguments, by_the_model, fresh, largest_gap
from tests.rollout.test_threads import LONG, endless, rollouts_of, wait_for_tokens
from tests.tiny import tiny_model
from tests.trainer.test_lora import adapted_trainer

GREEDY = Sampling(group_size=1, max_tokens=20, temperature=0.0)
SHAPE = AdapterShape(4, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"))


@pytest.fixture(scope="module")
def trainer() -> PolicyTrainer:
    """Of the model that the engines have."""
    return adapted_trainer("qwen3", None)


@pytest.fixture(scope="module")
def apart(model_dir: Path) -> Iterator[Any]:
    from onpolicy.rollout.vllm_generator import VLLMGenerator

    generator = VLLMGenerator(**arguments(model_dir), dtype="float32", adapter=SHAPE)
    yield generator
    generator.close()


@torch.no_grad()
def moved(trainer: PolicyTrainer, seed: int) -> PreTrainedModel:
    """Another version of the student; returns it merged."""
    torch.manual_seed(seed)
    for parameter in trainer.student.parameters():
        if parameter.requires_grad:
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    merged = tiny_model("qwen3", seed=1)
    merged.load_state_dict(dict(trainer.weights()))
    return merged


def sync(generator: Any, trainer: PolicyTrainer) -> int:
    """Gives the generator the adapters alone; returns their bytes."""
    sent: list[tuple[str, Tensor]] = []

    def adapter() -> Iterator[tuple[str, Tensor]]:
        for pair in trainer.weights().adapter():
            sent.append(pair)
            yield pair

    def whole() -> Any:
        raise AssertionError("the other weights are not asked for")

    generator.update_weights(StudentWeights(whole, adapter), version=generator.policy_version + 1)
    assert all(".lora_A." in name or ".lora_B." in name for name, _ in sent)
    return sum(tensor.nbytes for _, tensor in sent)


def held(generator: Any) -> set[int]:
    found: set[int] = generator._engine._llm.llm_engine.list_loras()
    return found


@pytest.mark.vllm
def test_an_engine_with_adapters_is_one_with_the_merged_weights(
    apart: Any, vllm: Any, trainer: PolicyTrainer, model_dir: Path
) -> None:
    assert largest_gap(fresh(model_dir), apart.generate(PROMPTS, seed=0)) < 1e-5, "the base model, before any version"
    own = sum(p.nbytes for p in trainer.student.parameters() if p.requires_grad)
    seen = set[int]()
    for seed in range(3):
        merged = moved(trainer, seed)
        assert sync(apart, trainer) == own < sum(p.nbytes for p in merged.parameters()) / 5
        assert len(held(apart)) == 1 and not held(apart) & seen
        seen |= held(apart)
        vllm.update_weights(merged.state_dict().items(), version=vllm.policy_version + 1)
        ours, theirs = apart.generate(PROMPTS, seed=0, sampling=GREEDY), vllm.generate(PROMPTS, seed=0, sampling=GREEDY)
        for one, other in zip(rollouts_of(ours), rollouts_of(theirs), strict=True):
            assert one.completion_ids == other.completion_ids and one.policy_version == apart.policy_version
            assert one.rollout_logprobs == pytest.approx(other.rollout_logprobs, abs=1e-5)
        tokens = [5, 9, 40, 41, 7, *range(50, 90)]
        assert apart.logprobs(tokens) == pytest.approx(vllm.logprobs(tokens), abs=1e-5)
        assert largest_gap(merged, apart.generate(PROMPTS, seed=seed)) < 1e-5
        assert largest_gap(fresh(model_dir), apart.generate(PROMPTS, seed=seed)) > 1e-2
    assert not list(vllm_lora.MEMORY.glob("onpolicy-adapter-*"))


@pytest.mark.vllm
def test_a_rollout_ends_with_the_adapter_that_it_began_with(apart: Any, trainer: PolicyTrainer) -> None:
    """This engine holds two adapters, of which one may compute at a time: the third waits until one is free."""
    models = {}
    sync(apart, trainer)
    with ThreadPoolExecutor(3) as pool:
        under_way = []
        for seed in range(10, 13):
            models[apart.policy_version + 1] = moved(trainer, seed)
            sync(apart, trainer)
            under_way.append(pool.submit(apart.generate, endless(apart), seed=3, sampling=LONG))
            if seed < 12:
                wait_for_tokens(apart._engine, 5, under_way[-1])
        found = [rollouts_of(groups.result()) for groups in under_way]
    for (version, model), rollouts in zip(models.items(), found, strict=True):
        for rollout in rollouts:
            assert rollout.policy_version == version and rollout.token_versions == ()
            gap = (by_the_model(model, rollout) - torch.tensor(rollout.rollout_logprobs)).abs().max()
            assert gap < 1e-4
    apart.generate(PROMPTS, seed=0)
    sync(apart, trainer)
    assert len(held(apart)) == 1


@pytest.mark.vllm
def test_all_weights_are_taken_from_elsewhere(apart: Any, trainer: PolicyTrainer, model_dir: Path) -> None:
    """What is no trainer's has no adapters."""
    sync(apart, trainer)
    other = tiny_model("qwen3", seed=5)
    apart.update_weights(other.state_dict().items(), version=apart.policy_version + 1)
    assert largest_gap(other, apart.generate(PROMPTS, seed=0)) < 1e-5 and not held(apart)
    apart.update_weights(fresh(model_dir).state_dict().items(), version=apart.policy_version + 1)
    merged = moved(trainer, 20)
    sync(apart, trainer)
    assert largest_gap(merged, apart.generate(PROMPTS, seed=0)) < 1e-5


@pytest.mark.vllm
def test_vllms_sources_are_read_as_vllm_reads_them() -> None:
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks
    from vllm.model_executor.models import ModelRegistry, supports_lora

    assert get_args(MaxLoRARanks) == RANKS
    known = ("Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen3MoeForCausalLM", "Gemma3ForCausalLM",
             "GPTNeoXForCausalLM", "OPTForCausalLM", "PhiMoEForCausalLM", "GPT2LMHeadModel", "FalconForCausalLM")  # fmt: skip
    found = {name: takes_adapters(name) for name in known}
    assert found == {name: supports_lora(ModelRegistry.models[name].load_model_cls()) for name in known}
    assert set(found.values()) == {True, False}
    assert not takes_adapters("NobodysForCausalLM")


def test_what_vllm_cannot_take_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_lora, "takes_adapters", lambda architecture: architecture == "Known")

    def why(architecture: str = "Known", rank: int = 4, dtype: str = "float32", on_gpu: bool = False) -> str:
        return why_no_adapter(architecture, AdapterShape(rank, ("q_proj",)), dtype=dtype, on_gpu=on_gpu)

    assert why() == why(rank=512) == why(dtype="bfloat16", on_gpu=True) == ""
    assert "rank 512 at most" in why(rank=513)
    assert "float32 on a GPU" in why(on_gpu=True)
    assert "Unknown takes no adapters" in why("Unknown")


def test_arguments_of_the_engine() -> None:
    found = adapter_arguments(AdapterShape(9, ("q_proj",)), Sampling(max_staleness=2))
    slots = {"max_loras": 3, "max_cpu_loras": 4}
    assert found == {"enable_lora": True, "max_lora_rank": 16, "lora_target_modules": ["q_proj"], **slots}


def test_the_shape_is_that_of_the_adapters() -> None:
    assert adapter_shape(tiny_model("qwen3"), LoraSettings(4)) == SHAPE


@pytest.mark.parametrize("room", [True, False])
def test_the_folder_lies_in_memory_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, trainer: PolicyTrainer, tmp_path: Path, room: bool
) -> None:
    monkeypatch.setattr(vllm_lora, "free_bytes", lambda folder: 10**9 if room else 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with adapter_folder(dict(trainer.weights().adapter())) as folder:
        assert folder.parent == (vllm_lora.MEMORY if room else tmp_path)
        assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not folder.exists()


def test_without_vllm_nothing_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    takes_adapters.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin="/nowhere/__init__.py"))
    assert not takes_adapters("Qwen3ForCausalLM")
    takes_adapters.cache_clear()
