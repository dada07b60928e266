"""Gradient checkpointing: layers run again as they ran, whatever of them is random in training mode.

1. every layer runs twice, and the gradient is to rounding the one without checkpointing, packed and padded, for dropout, router
jitter and layerdrop; 2. so it is for copies and under adapters; 3. a teacher that is the student gives exactly nothing; 4. a model
that is random all the same is told so by preflight, and is not said to have a strange head; 5. a model without layers is refused.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, PreTrainedModel

from onpolicy.config.schema import TrainerSettings
from onpolicy.losses.objective import Objective
from onpolicy.trainer.head import head_error
from onpolicy.trainer.recompute import recompute_layers
from onpolicy.trainer.teacher_rules import WeightRule, ema, live
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, local
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.timer import PhaseTimer
from tests.runs import run_here, write_config
from tests.tiny import random_examples, tiny_model, tiny_model_dir
from tests.trainer.test_trainer import distill_term

FAMILIES = ("attention dropout", "dropout in the config", "mixtral", "phimoe", "opt", "qwen3_next")


def random_in_training(family: str) -> PreTrainedModel:
    """A model whose training mode is random; Falcon reads its dropout from the config at each call."""
    if family == "dropout in the config":
        torch.manual_seed(0)
        shape = {"vocab_size": 264, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return FalconForCausalLM(FalconConfig(**shape, hidden_dropout=0.5, initializer_range=0.15)).eval()
    if family == "attention dropout":
        model = tiny_model("llama")
        for layer in model.base_model.layers:  # type: ignore[union-attr]
            layer.self_attn.attention_dropout = 0.5
        return model
    return tiny_model(family)


def trainer(model: PreTrainedModel, rule: WeightRule | None = None, **options: Any) -> PolicyTrainer:
    setup = TrainerSetup(
        student=model, objective=Objective((distill_term(),)), rule=rule or live(), total_steps=1, contexts=("teacher",),
        settings=TrainerSettings(micro_batch_tokens=100), clock=PhaseTimer(),
    )  # fmt: skip
    return local(setup=setup, **options)


def gradients(one: PolicyTrainer) -> dict[str, torch.Tensor]:
    one.inputs(one.batching.batch(random_examples(4))).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in one.student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{"layout": "padded"}, {}, {"lora_rank": 4}], ids=["padded", "packed", "adapters"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_one_without_checkpointing(family: str, options: dict[str, Any]) -> None:
    expected = gradients(trainer(random_in_training(family), **options))
    one = trainer(random_in_training(family), gradient_checkpointing=True, **options)
    runs: list[None] = []
    first = one.student.base_model.decoder if family == "opt" else one.student.base_model
    layers = first.h if family == "dropout in the config" else first.layers
    for layer in layers:
        next(layer.children()).register_forward_pre_hook(lambda *_: runs.append(None))
    found = gradients(one)
    assert len(runs) == 3 * len(layers), "once for the teacher, once for the student, and again in the backward pass"
    assert found.keys() == expected.keys() and any(g.abs().max() > 1e-2 for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("rule", [live(), ema(ema_decay=0.5)], ids=["live", "a copy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_that_is_the_student_gives_nothing(family: str, rule: WeightRule) -> None:
    one = trainer(random_in_training(family), rule, gradient_checkpointing=True)
    metrics = one.step([replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in random_examples(5)])
    assert abs(metrics["train/loss"]) < 1e-6


def test_a_copy_recomputes_its_own_layers() -> None:
    model = tiny_model()
    recompute_layers(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    ids = torch.arange(5, 20)[None]
    plain = tiny_model()
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)
    assert (twin(ids).logits - plain(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("family", ["phimoe", "opt"])
def test_a_run_with_checkpointing_passes_preflight(tmp_path: Path, family: str) -> None:
    tiny_model_dir(tmp_path / "model", family)
    config = write_config(tmp_path)
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "trainer.gradient_checkpointing=true", "steps=1") == 0


def test_a_model_that_is_random_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never_eval(self: PreTrainedModel, mode: bool = True) -> PreTrainedModel:
        return torch.nn.Module.train(self, True)  # type: ignore[return-value]

    tiny_model_dir(tmp_path / "model", "mixtral")
    config = write_config(tmp_path)
    monkeypatch.setattr("transformers.MixtralForCausalLM.train", never_eval)
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "preflight.logprob_tolerance=100") != 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "MixtralForCausalLM: two passes over the same tokens give logits that differ by" in said and "head" not in said
    )


def test_two_passes_of_a_model_that_is_not_random_agree() -> None:
    error, noise = head_error(tiny_model("mixtral"), torch.tensor([[5, 6, 7]]))
    assert error < 1e-5 and noise == 0.0


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.gradient_checkpointing: Linear has no layers"):
        recompute_layers(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
