"""A model that never changes, in bfloat16: half the bytes, and not a bit of difference.

1. for families of every kind, under autocast, states, loss and gradient are those of the copy in float32, and what linear layers and
embeddings hold takes half the bytes; 2. an embedding that does something else with its table stays float32, and so does a head that is tied
to it; 3. what holds more than bfloat16, what is updated or read by a rule, and a model that computes something else stay float32; 4. the
line that says what computes in which dtype says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from onpolicy.config.schema import TrainerSettings
from onpolicy.losses.objective import Objective
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.trainer import teacher
from onpolicy.trainer.frozen_weights import keep_in_bfloat16, roundable
from onpolicy.trainer.teacher_rules import WeightRule, ema, frozen, live, model, snapshot, trust_region_weights
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, local
from onpolicy.utils.timer import PhaseTimer
from tests.tiny import FAMILIES, random_examples, tiny_model
from tests.trainer.test_prefix_sharing import FAMILIES as FAMILIES_THAT_PACK
from tests.trainer.test_prefix_sharing import model_of
from tests.trainer.test_trainer import distill_term, gradient, plain_term

SCALED = ["gemma", "gemma3", "granite", "cohere", "deepseek_v3, heads of two widths"]
"""Embeddings, norms, residuals or logits that are scaled; attention of another kind."""


def rounded(one: PreTrainedModel) -> PreTrainedModel:
    """As a checkpoint in bfloat16 that was loaded in float32."""
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return one


def family_in_bfloat16(name: str) -> PreTrainedModel:
    if name not in SCALED:
        return rounded(tiny_model(name))
    kind, options = FAMILIES_THAT_PACK[name]
    return rounded(model_of(kind, **options, vocab_size=264))


def trainer(
    student: PreTrainedModel, rule: WeightRule, *, other: PreTrainedModel | None = None, precision: str = "bfloat16"
) -> PolicyTrainer:
    setup = TrainerSetup(
        student=student, objective=Objective((distill_term(), plain_term(ref_kl, 0.5))), rule=rule, total_steps=10,
        settings=TrainerSettings(lr=1e-3, micro_batch_tokens=150), contexts=("teacher",), clock=PhaseTimer(), teacher_model=other,
    )  # fmt: skip
    return local(setup=setup, precision=precision)  # type: ignore[arg-type]


def dtypes(one: PreTrainedModel) -> set[torch.dtype]:
    return {p.dtype for p in roundable(one)}


def frozen_teacher(one: PolicyTrainer) -> PreTrainedModel:
    return one.teacher_scorer.teacher.model


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "keep_in_bfloat16", lambda *_, **__: False)


@pytest.mark.parametrize("name", ["qwen3", "llama", *FAMILIES, *SCALED])
def test_not_a_bit_of_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = random_examples(6, with_teacher=1.0)

    def run() -> tuple[PolicyTrainer, dict[str, Tensor], dict[str, float]]:
        one = trainer(family_in_bfloat16(name), frozen())
        states.append([row["teacher"] for row in one.teacher_hidden(examples)])
        one.step(examples)  # which moves the student away from its teacher
        return one, gradient(one, examples), one.step(examples)

    states: list[list[Tensor]] = []
    half, found, measured = run()
    without(monkeypatch)
    whole, expected, metrics = run()
    assert dtypes(frozen_teacher(half)) == {torch.bfloat16} and dtypes(frozen_teacher(whole)) == {torch.float32}
    assert dtypes(half.student) == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert measured == metrics and measured["train/grad_norm"] > 1e-3
    assert found.keys() == expected.keys() and all(torch.equal(found[n], tensor) for n, tensor in expected.items())
    saved = sum(p.nbytes for p in frozen_teacher(whole).parameters())
    saved -= sum(p.nbytes for p in frozen_teacher(half).parameters())
    assert saved == 2 * sum(p.numel() for p in roundable(half.student)) > 0


def test_a_table_that_is_scaled_stays_float32_and_a_head_that_is_tied_to_it() -> None:
    one = frozen_teacher(trainer(family_in_bfloat16("gemma3"), frozen()))
    table, head = one.get_input_embeddings().weight, one.get_output_embeddings().weight
    assert type(one.get_input_embeddings()) is not nn.Embedding and table is head
    assert table.dtype == torch.float32 and one.base_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16  # type: ignore[union-attr]


def test_a_matrix_that_is_tied_to_an_embedding_is_kept_once() -> None:
    one = frozen_teacher(trainer(rounded(tiny_model()), frozen()))
    assert one.get_output_embeddings().weight is one.get_input_embeddings().weight
    assert one.get_input_embeddings().weight.dtype == torch.bfloat16
    assert one.get_input_embeddings()(torch.tensor([5])).dtype == torch.float32


def test_weights_that_hold_more_than_bfloat16_stay_float32() -> None:
    one = trainer(tiny_model(), frozen())
    assert dtypes(frozen_teacher(one)) == {torch.float32}
    partly = rounded(tiny_model())
    with torch.no_grad():
        partly.base_model.layers[1].mlp.up_proj.weight[3, 5] += 2.0**-20  # type: ignore[union-attr]
    assert dtypes(frozen_teacher(trainer(partly, frozen()))) == {torch.float32}


@pytest.mark.parametrize("rule", [ema(), snapshot(), trust_region_weights()], ids=["ema", "snapshot", "trust_region"])
def test_a_teacher_that_is_updated_stays_float32(rule: WeightRule) -> None:
    one = trainer(rounded(tiny_model()), rule)
    assert dtypes(frozen_teacher(one)) == {torch.float32}
    assert one.teacher_scorer.reference is not None
    expected = torch.float32 if rule.reads_ref else torch.bfloat16  # a rule may do anything with what it reads
    assert dtypes(one.teacher_scorer.reference.model) == {expected}
    one.step(random_examples(4))


def test_another_model_and_the_reference_model_are_kept_in_bfloat16() -> None:
    one = trainer(tiny_model(), model(path="other"), other=rounded(tiny_model("llama", seed=7, width=96)))
    assert dtypes(frozen_teacher(one)) == {torch.bfloat16}
    assert one.teacher_scorer.reference is not None
    assert dtypes(one.teacher_scorer.reference.model) == {torch.float32}, "the student's checkpoint is in float32"
    one.step(random_examples(4, with_teacher=1.0))
    same = trainer(rounded(tiny_model()), live())
    assert same.teacher_scorer.reference is not None and frozen_teacher(same) is same.student
    assert dtypes(same.teacher_scorer.reference.model) == {torch.bfloat16} and dtypes(same.student) == {torch.float32}


def test_in_float32_nothing_is_rounded() -> None:
    one = trainer(rounded(tiny_model()), frozen(), precision="float32")
    assert dtypes(frozen_teacher(one)) == {torch.float32} and "frozen" not in str(one.forward_report)


def run_in_bfloat16(one: PreTrainedModel) -> Callable[..., Any]:
    def body(**inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return one.base_model(**inputs)

    return body


def looks(hidden: Tensor, weight: Tensor) -> Tensor:
    """A layer that computes in the dtype of its weights, as some families' do."""
    return nn.functional.linear(hidden.to(weight.dtype).float() * 1.001, weight)


def fails(hidden: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return hidden.float() @ weight.T


@pytest.mark.parametrize("odd", [looks, fails])
def test_a_model_that_would_compute_something_else_is_left_as_it_was(odd: Callable[..., Tensor]) -> None:
    one = rounded(tiny_model())
    layer = one.base_model.layers[0].mlp.up_proj  # type: ignore[union-attr]
    layer.forward = lambda hidden: odd(hidden, layer.weight)
    before = copy.deepcopy(one.state_dict())
    assert not keep_in_bfloat16(one, run_in_bfloat16(one), layout="padded")
    assert dtypes(one) == {torch.float32} and not one.get_input_embeddings()._forward_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())
    del layer.forward
    assert keep_in_bfloat16(one, run_in_bfloat16(one), layout="padded"), "without that layer it is"


def test_the_line_about_dtypes_says_it() -> None:
    def said(student: PreTrainedModel, rule: WeightRule) -> str:
        return str(trainer(student, rule).forward_report)

    rest = "bfloat16 on cpu, weights and updates float32"
    assert said(rounded(tiny_model()), frozen()) == f"{rest}, frozen models bfloat16, layers not recomputed"
    assert said(tiny_model(), frozen()) == f"{rest}, frozen models float32, layers not recomputed"
    mixed = trainer(tiny_model(), model(path="other"), other=rounded(tiny_model(seed=7)))
    assert "frozen models bfloat16 and float32" in str(mixed.forward_report)
