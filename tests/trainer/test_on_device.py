"""What depends on the device, without a GPU: a device object, a patched flag, fake tensors, counters.

1. on CUDA passes run in bfloat16 over float32 weights, layers are recomputed, AdamW is fused, and the head's chunk is larger; on the
CPU nothing of it; what is set stays; 2. a pass that runs in another dtype than was asked for ends the run; 3. fused AdamW takes
the same steps, and its state goes to and fro; 4. recomputing and the chunk change no loss and no gradient; 5. what a pass keeps
for the backward pass at the shape of an 8B model is bounded; 6. no two signs of life are further apart than one pass or one parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config

from onpolicy.config.schema import TrainerSettings
from onpolicy.experiments.forecast.activations import PassSettings, learning_pass
from onpolicy.experiments.forecast.shape import ModelSource
from onpolicy.losses.objective import Objective
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.trainer import chunked_head, optimizer
from onpolicy.trainer.body_runner import PrecisionError
from onpolicy.trainer.forward_settings import ForwardSettings
from onpolicy.trainer.reversible import make_change, reversible_change, undo_change
from onpolicy.trainer.teacher_rules import ema
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, forward_report, local
from onpolicy.utils.timer import PhaseTimer
from tests.tiny import random_examples, tiny_model
from tests.trainer.test_trainer import distill_term, gradient, optimizer_of, plain_term

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def trainer(*, family: str = "qwen3", settings: dict[str, Any] | None = None, **options: Any) -> PolicyTrainer:
    setup = TrainerSetup(
        student=tiny_model(family), objective=Objective((distill_term(), plain_term(policy_gradient), plain_term(ref_kl, 0.1))),
        rule=ema(ema_decay=0.5), settings=TrainerSettings(**{"lr": 1e-3, "micro_batch_tokens": 60} | (settings or {})),
        total_steps=10, contexts=("teacher",), clock=PhaseTimer(),
    )  # fmt: skip
    return local(setup=setup, **options)


@pytest.mark.parametrize(
    ("device", "asked", "expected"),
    [
        (CUDA, {}, ("bfloat16", True)),
        (CPU, {}, ("float32", False)),
        (CUDA, {"precision": "float32", "gradient_checkpointing": False}, ("float32", False)),
        (CPU, {"precision": "bfloat16", "gradient_checkpointing": True}, ("bfloat16", True)),
    ],
)
def test_the_device_decides_what_is_left_to_it(
    device: torch.device, asked: dict[str, Any], expected: tuple[str, bool]
) -> None:
    found = ForwardSettings(**asked).on(device)
    assert (found.precision, found.gradient_checkpointing) == expected


def test_a_model_without_layers_is_not_refused_for_a_default() -> None:
    assert ForwardSettings().on(CUDA, can_recompute=False).gradient_checkpointing is False


def test_the_cpu_keeps_float32_and_the_loop_of_adamw() -> None:
    one = trainer()
    one.step(random_examples(4))
    report = forward_report(one)
    assert report is not None and str(report) == "float32 on cpu, weights and updates float32, layers not recomputed"
    assert set(one.engine.computed.values()) == {"float32"} and not optimizer_of(one).param_groups[0]["fused"]


def test_in_bfloat16_every_model_runs_in_it_and_weights_stay_float32() -> None:
    one = trainer(precision="bfloat16")
    one.step(random_examples(4))
    assert len(one.engine.computed) == 3, "student, teacher, reference model"
    assert set(one.engine.computed.values()) == {"bfloat16"}
    assert {p.dtype for p in one.student.parameters()} == {torch.float32}
    assert {s["exp_avg"].dtype for s in optimizer_of(one).state.values()} == {torch.float32}


def test_a_pass_in_another_dtype_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As DeepSpeed did with an autocast that it had not opened."""
    one = trainer(precision="bfloat16")
    inside = type(one.student.base_model).forward

    def switched_off(self: PreTrainedModel, *arguments: Any, **options: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return inside(self, *arguments, **options)

    monkeypatch.setattr(type(one.student.base_model), "forward", switched_off)
    with pytest.raises(
        PrecisionError, match=r"trainer\.precision: the layers of Qwen3ForCausalLM ran in float32 on cpu, expected bf"
    ):
        one.step(random_examples(4))


def test_nothing_holds_a_copy_of_the_weights_in_bfloat16_during_a_pass() -> None:
    one, cached = trainer(precision="bfloat16"), []
    layer = one.student.base_model.layers[0]  # type: ignore[union-attr]
    layer.register_forward_hook(lambda *_: cached.append(torch.is_autocast_cache_enabled()))
    one.step(random_examples(2))
    assert cached and not any(cached)


def test_fused_adamw_takes_the_same_steps_and_its_state_goes_to_and_fro(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trainer()
    monkeypatch.setattr(optimizer, "FUSED_ON", ("cpu",))
    fused, again = trainer(), trainer()
    for seed in range(3):
        one, other = plain.step(random_examples(4, seed=seed)), fused.step(random_examples(4, seed=seed))
        assert one.keys() == other.keys() and all(one[n] == pytest.approx(other[n], abs=1e-6, rel=1e-5) for n in one)
    assert optimizer_of(fused).param_groups[0]["fused"]
    plain.save(tmp_path)()
    again.load_state(tmp_path, plain.state())
    one, other = plain.step(random_examples(4, seed=9)), again.step(random_examples(4, seed=9))
    assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-6)
    for name, weight in dict(plain.weights()).items():
        torch.testing.assert_close(dict(again.weights())[name], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("change", ["recomputed", "chunk"])
def test_each_changes_no_loss_and_no_gradient(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    examples = random_examples(6)
    expected, loss = gradient(trainer(), examples), trainer().step(examples)["train/loss"]
    if change == "chunk":
        monkeypatch.setitem(chunked_head.TOKENS_PER_CHUNK, "cpu", 7)
        monkeypatch.setattr(chunked_head, "LARGEST_POOLED_TENSOR", 0)
    options: dict[str, Any] = {"gradient_checkpointing": True} if change == "recomputed" else {}
    found = gradient(trainer(**options), examples)
    assert trainer(**options).step(examples)["train/loss"] == pytest.approx(loss, abs=1e-6)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-4, msg=name)


def test_the_heads_chunk_is_the_devices() -> None:
    assert chunked_head._tokens_per_chunk(151_936, CPU) == 256 and chunked_head._tokens_per_chunk(151_936, CUDA) == 2048
    assert chunked_head._tokens_per_chunk(50_000, CPU) == 160 and chunked_head._tokens_per_chunk(50_000, CUDA) == 2048


def test_what_a_pass_keeps_for_the_backward_pass(tmp_path: Path) -> None:
    """At the width of Qwen3-8B, a token and layer. Without recomputation 36 layers and 8,192 tokens would be over 80 GiB."""
    rows = ((256, 256),)

    def kept_by(layers: int, precision: Any, *, recomputed: bool) -> int:
        config = Qwen3Config(
            vocab_size=1024, hidden_size=4096, intermediate_size=12288, num_hidden_layers=layers, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128,
        )  # fmt: skip
        config.save_pretrained(folder := tmp_path / str(layers))
        model = ModelSource(str(folder))
        return learning_pass(PassSettings(model, "cuda", precision, recomputed, packed=True), rows).kept

    def kept(precision: str, *, recomputed: bool) -> float:
        two, one = (kept_by(layers, precision, recomputed=recomputed) for layers in (2, 1))
        weights = 2 * (4096 * 128 * (32 + 8 + 8 + 32) + 3 * 4096 * 12288)  # their casts
        cast = weights if precision == "bfloat16" and not recomputed else 0
        return (two - one - cast) / (256 + 256 - 1)

    KIB = 1024
    assert kept("float32", recomputed=False) > 400 * KIB
    assert kept("bfloat16", recomputed=False) > 250 * KIB
    assert kept("bfloat16", recomputed=True) <= 17 * KIB, "the layer's input in float32"


class Signs:
    """Counts what is done between two signs of life."""

    def __init__(self, one: PolicyTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.since, self.most, self.all = 0, 0, 0
        one.clock.on_progress = self.alive
        for model in {
            id(r.model): r.model for r in (one.teacher_scorer.teacher, one.teacher_scorer.student_reader)
        }.values():
            model.base_model.register_forward_pre_hook(self.work)
        backward = torch.Tensor.backward
        monkeypatch.setattr(torch.Tensor, "backward", self.before(backward))

    def alive(self) -> None:
        self.since = 0

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.work()
            return function(*arguments, **options)

        return call

    def work(self, *_: Any) -> None:
        self.since, self.all = self.since + 1, self.all + 1
        self.most = max(self.most, self.since)


def test_there_is_a_sign_of_life_for_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(settings={"updates_per_step": 2})
    signs = Signs(one, monkeypatch)
    one.step(random_examples(12))
    assert signs.all > 8 and signs.most == 1


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_there_is_a_sign_of_life_for_every_parameter(tmp_path: Path, lora_rank: int) -> None:
    one = trainer(lora_rank=lora_rank)
    one.step(random_examples(2))
    counts: list[int] = []
    one.clock.on_progress = lambda: counts.append(1)

    def signs(work: Callable[[], Any]) -> int:
        counts.clear()
        work()
        return len(counts)

    trained = sum(p.requires_grad for p in one.student.parameters())
    assert signs(lambda: dict(one.weights())) >= len(dict(one.weights())) - 1
    teacher = len(dict(one.teacher_scorer.weights()))
    assert signs(one.save(tmp_path)) == 0, "what is left to a thread must not speak for the trainer"
    assert signs(lambda: one.save(tmp_path)) >= 2 * trained + teacher
    assert signs(lambda: one.load_state(tmp_path, one.state())) >= trained + teacher
    change = reversible_change(one)
    assert signs(lambda: reversible_change(one)) >= trained
    assert signs(lambda: make_change(one, change)) >= trained - 1
    assert signs(lambda: undo_change(one, change)) >= trained - 1
