"""Adapters on every kind of layer: trainer, generator and checkpoint are one model.

1. what is named learns, the head and embeddings tied to it included; 2. the merged weights give the trainer's log-probabilities,
in the model that a checkpoint loads too; 3. with adapters off the model is the reference model again; 4. what cannot be one model
is refused with the key: an adapter on a tied head alone, layers that return more than a product, names that no layer has.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onpolicy.config.schema import TrainerSettings
from onpolicy.losses.objective import Objective
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.models import load_causal_lm
from onpolicy.trainer.export import ModelExport
from onpolicy.trainer.lora import LoraSettings, adapter_off, add_adapter
from onpolicy.trainer.teacher_rules import WeightRule, frozen, live
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, local
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.timer import PhaseTimer
from tests.runs import metrics, run_here, write_config
from tests.tiny import byte_tokenizer, random_examples, tiny_model, tiny_model_dir
from tests.trainer.test_trainer import distill_term, plain_term


def adapted_trainer(
    family: str,
    targets: list[str] | None,
    *,
    rank: int = 4,
    rule: WeightRule | None = None,
    model: Any = None,
    **options: Any,
) -> PolicyTrainer:
    terms = distill_term(), plain_term(policy_gradient), plain_term(ref_kl, 0.1)
    setup = TrainerSetup(
        student=tiny_model(family) if model is None else model, objective=Objective(terms), rule=rule or live(),
        settings=TrainerSettings(lr=1e-2, micro_batch_tokens=100), total_steps=10, contexts=("teacher",), clock=PhaseTimer(),
    )  # fmt: skip
    return local(setup=setup, lora_rank=rank, lora_targets=targets, **options)


def logprobs(one: PolicyTrainer) -> torch.Tensor:
    return torch.cat(one.logprobs(random_examples(6, with_teacher=1.0)))


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["lm_head"]),
        ("llama", ["q_proj", "lm_head", "embed_tokens"]),
        ("qwen3", ["embed_tokens"]),
        ("qwen3", ["q_proj", "embed_tokens"]),
        ("opt", ["embed_tokens"]),
        ("qwen3_moe", None),
        ("mixtral", None),
        ("phimoe", None),
        ("qwen3_next", None),
        ("gpt_neox", ["query_key_value", "lm_head"]),
    ],
)
def test_trainer_generator_and_checkpoint_are_one_model(tmp_path: Path, family: str, targets: list[str] | None) -> None:
    one = adapted_trainer(family, targets)
    start, before = logprobs(one), {n: p.detach().clone() for n, p in one.student.named_parameters() if p.requires_grad}
    for _ in range(3):
        one.step(random_examples(6, with_teacher=1.0))
    still = [n for n, p in one.student.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
    assert not still, "every adapter learns"
    assert (logprobs(one) - start).abs().mean() > 0.1
    synced = tiny_model(family, seed=9)
    assert set(dict(one.weights())) == set(synced.state_dict())
    synced.load_state_dict(dict(one.weights()))
    ModelExport(tiny_model(family), byte_tokenizer()).write(tmp_path, dict(one.weights()))
    for other in (synced, load_causal_lm(str(tmp_path))):
        plain = adapted_trainer(family, None, rank=0, model=other)
        torch.testing.assert_close(logprobs(plain), logprobs(one), atol=2e-5, rtol=1e-5)
    with adapter_off(one.student):
        torch.testing.assert_close(logprobs(one), start, atol=1e-6, rtol=1e-6)


def gradients(one: PolicyTrainer) -> dict[str, torch.Tensor]:
    """Of the sum of all log-probabilities, by the micro-batches' own head."""
    batch = one.batching.batch(random_examples(4))
    one.inputs(batch).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in one.student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "target"), [("llama", "lm_head"), ("qwen3", "embed_tokens")])
def test_the_adapters_gradient_is_that_of_the_merged_matrix(family: str, target: str) -> None:
    """With W' = W + s B A, the chain rule gives dB = s dW' A^T; for a tied matrix dW' adds up over embedding and head."""
    one = adapted_trainer(family, [target])
    own = {n: p for n, p in one.student.named_parameters() if p.requires_grad}
    (a,) = (p for n, p in own.items() if "_A" in n)
    (found,) = (g for n, g in gradients(one).items() if "_B" in n)
    (matrix,) = (g for n, g in gradients(adapted_trainer(family, None, rank=0)).items() if target in n)
    turned = matrix if target == "lm_head" else matrix.T  # peft keeps the embedding's adapter the other way round
    torch.testing.assert_close(found, 8.0 * turned @ a.T, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rule", [live(), frozen()], ids=["live", "frozen"])
@pytest.mark.parametrize(("family", "targets"), [("llama", ["lm_head"]), ("qwen3", ["embed_tokens"])])
def test_a_teachers_head_has_the_adapter_that_the_rule_gives_it(
    rule: WeightRule, family: str, targets: list[str]
) -> None:
    one, examples = adapted_trainer(family, targets, rule=rule), random_examples(4, with_teacher=1.0)
    twins = [replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in examples]
    one.step(examples)
    inputs = one.inputs(one.batching.batch(twins))
    gap = (inputs.teacher["teacher"].logprobs - inputs.logprobs)[inputs.sampled_mask].abs().mean()
    assert gap < 1e-6 if rule == live() else gap > 1e-2


def test_an_adapter_on_a_tied_head_alone_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"trainer\.lora_targets: .*'lm_head'.*tie_word_embeddings.*expected 'embed_tokens'"
    ):
        adapted_trainer("qwen3", ["q_proj", "lm_head"])


def test_names_that_no_layer_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.lora_targets: got 'query', .*q_proj"):
        adapted_trainer("qwen3", ["query"])


def test_a_router_that_returns_more_than_a_product_gets_no_adapter() -> None:
    with pytest.raises(
        ConfigError, match=r"trainer\.lora_targets: 'model\.layers\.0\.mlp\.router' is a PhimoeTopKRouter"
    ):
        adapted_trainer("phimoe", ["q_proj", "router"])


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", ["trainer.lora_targets=[q_proj, embed_tokens]"]),
        ("qwen3_moe", []),
        ("llama", ["trainer.lora_targets=[lm_head]"]),
    ],
)
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, family: str, options: list[str]) -> None:
    tiny_model_dir(tmp_path / "model", family)
    config = write_config(tmp_path, teacher={"name": "frozen"})
    options = ["trainer.lora_rank=4", "trainer.lr=0.01", *options]
    for run, parts in (("parts", ("2", "3")), ("whole", ("3",))):
        for steps in parts:
            assert run_here(config, f"run_dir={tmp_path / run}", f"steps={steps}", *options) == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert all(row["rollout/logprob_gap"] < 1e-4 for row in metrics(tmp_path / "whole") if row["step"])


def test_the_runs_seed_decides_where_adapters_begin() -> None:
    def begin(seed: int) -> list[torch.Tensor]:
        torch.rand(7)  # whatever was drawn before
        model = tiny_model()
        add_adapter(model, LoraSettings(4), seed=seed)
        return [p for n, p in model.named_parameters() if ".lora_A" in n]

    one, again, other = begin(1), begin(1), begin(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_quantized_base_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, rank: int
) -> None:
    config = write_config(tmp_path)
    path = tmp_path / "model" / "config.json"
    own = {"quant_method": method, "load_in_4bit": True, "bits": 4}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": own}))
    assert run_here(config, f"run_dir={tmp_path / 'run'}", f"trainer.lora_rank={rank}") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"model.path: {str(tmp_path / 'model')!r} has weights quantized with {method}" in said and "QLoRA" in said
