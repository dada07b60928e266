"""The trainer in one process, on real small models.

1. teacher = student prompt gives loss 0 and gradient 0; 2. the gradient does not depend on the micro-batch (1, 3, 8) nor
on the layout; 3. the frozen teacher never moves, EMA follows its formula, neither has gradients; 4. several updates a
step use the log-probs from before the first; 5. no signal: no update; 6. state goes out and comes back to the last bit;
7. thirty steps move the student towards its privileged teacher.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onpolicy.config.schema import TrainerSettings
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.divergences import forward_kl, jsd
from onpolicy.losses.objective import Objective, Term
from onpolicy.losses.supports import full, student_topk
from onpolicy.losses.targets import identity
from onpolicy.losses.terms.base import spec_of
from onpolicy.losses.terms.distill import distill
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.trainer.engine import TorchEngine
from onpolicy.trainer.learning_rate import lr_factor
from onpolicy.trainer.teacher_rules import WeightRule, ema, frozen, live, snapshot
from onpolicy.trainer.trainer import PolicyTrainer, TrainerSetup, local, split
from onpolicy.types import Example
from onpolicy.utils.timer import PhaseTimer
from tests.tiny import example, random_examples, tiny_model


def half_jsd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return jsd(student, teacher, beta=0.5)


def distill_term(divergence: Any = forward_kl, support: Any = full, weight: float = 1.0) -> Term:
    def bound(inputs: Any) -> Any:
        return distill(inputs, divergence=divergence, support=support)

    return Term(
        "distill",
        weight,
        bound,
        spec_of(distill),
        ("teacher",),
        comparison=Comparison("teacher", support, identity, divergence),
    )


def plain_term(function: Any, weight: float = 1.0) -> Term:
    return Term(function.__name__, weight, function, spec_of(function))


def trainer(*terms: Term, rule: WeightRule | None = None, seed: int = 0, **settings: Any) -> PolicyTrainer:
    options = {"layout": settings.pop("layout", "padded"), "moments": settings.pop("moments", "float32")}
    setup = TrainerSetup(
        student=tiny_model(seed=seed), objective=Objective(terms or (distill_term(),)), rule=rule or live(),
        settings=TrainerSettings(**{"lr": 1e-3, "micro_batch_tokens": 150, **settings}), total_steps=10, contexts=("teacher",),
        clock=PhaseTimer(),
    )  # fmt: skip
    return local(setup=setup, **options)


def optimizer_of(one: PolicyTrainer) -> torch.optim.Optimizer:
    assert isinstance(one.engine, TorchEngine)
    return one.engine.optimizer


def gradient(one: PolicyTrainer, examples: list[Example]) -> dict[str, torch.Tensor]:
    """Of one update, caught before the optimizer uses it."""
    caught: dict[str, torch.Tensor] = {}

    def catch(optimizer: Any, args: Any, kwargs: Any) -> None:
        caught.update({n: p.grad.clone() for n, p in one.student.named_parameters() if p.grad is not None})

    handle = optimizer_of(one).register_step_pre_hook(catch)
    one.step(examples)
    handle.remove()
    return caught


@pytest.mark.parametrize("rule", [live(), frozen(), ema(ema_decay=0.5)], ids=["live", "frozen", "ema"])
def test_a_teacher_with_the_students_prompt_gives_no_loss_and_no_gradient(rule: WeightRule) -> None:
    examples = [replace(e, teacher_prompt_ids={"teacher": e.rollout.prompt_ids}) for e in random_examples(5)]
    one = trainer(distill_term(), rule=rule, micro_batch_tokens=60)
    metrics = one.step(examples)
    assert abs(metrics["train/loss"]) < 1e-6 and metrics["train/grad_norm"] < 1e-4
    assert abs(metrics["distill/teacher_gap"]) < 1e-6


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_gradient_does_not_depend_on_the_micro_batch(layout: str) -> None:
    terms = (distill_term(half_jsd, student_topk, weight=0.7), plain_term(policy_gradient), plain_term(ref_kl, 0.1))
    examples = random_examples(8, seed=1)
    reference = gradient(trainer(*terms, micro_batch_tokens=1000), examples)
    assert len(reference) > 10 and any(g.abs().max() > 1e-3 for g in reference.values())
    for budget in (1, 100, 1000):
        found = gradient(trainer(*terms, micro_batch_tokens=budget, layout=layout), examples)
        for name, expected in reference.items():
            torch.testing.assert_close(found[name], expected, atol=2e-6, rtol=1e-4, msg=f"{name} at {budget}")


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_an_empty_completion_changes_nothing(layout: str) -> None:
    rows = random_examples(4)
    empty = [example([5, 6, 7], [], teacher=[9, 5, 6, 7]), example([8, 9], [])]
    for budget in (20, 1000):
        one, other = (trainer(distill_term(), micro_batch_tokens=budget, layout=layout) for _ in range(2))
        expected, found = gradient(one, rows), gradient(other, [empty[0], *rows, empty[1]])
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=2e-6, rtol=1e-4, msg=name)
    alone = trainer(distill_term(), layout=layout)
    assert alone.step(empty)["train/empty_updates"] == 1.0 and [len(row) for row in alone.logprobs(empty)] == [0, 0]


def test_the_order_of_the_rollouts_does_not_matter() -> None:
    examples = random_examples(6, seed=2)
    one, other = gradient(trainer(), examples), gradient(trainer(), examples[::-1])
    for name, expected in one.items():
        torch.testing.assert_close(other[name], expected, atol=2e-6, rtol=1e-4)


def test_ema_follows_its_formula_and_frozen_never_moves() -> None:
    examples = random_examples(6)
    one, still = trainer(rule=ema(ema_decay=0.9)), trainer(rule=frozen())
    before = {n: p.clone() for n, p in one.teacher_scorer.teacher.model.named_parameters()}
    start = {n: p.clone() for n, p in still.teacher_scorer.teacher.model.named_parameters()}
    for _ in range(2):
        one.step(examples)
        still.step(examples)
        for name, parameter in one.teacher_scorer.teacher.model.named_parameters():
            before[name] = 0.9 * before[name] + 0.1 * dict(one.student.named_parameters())[name].detach()
            torch.testing.assert_close(parameter, before[name])
            assert parameter.grad is None and not parameter.requires_grad
    assert all(torch.equal(p, start[n]) for n, p in still.teacher_scorer.teacher.model.named_parameters())
    assert any(not torch.equal(p, start[n]) for n, p in still.student.named_parameters())


def test_a_snapshot_teacher_is_the_student_of_some_steps_ago() -> None:
    one, examples = trainer(rule=snapshot(every=2)), random_examples(4)
    start = [p.clone() for p in one.teacher_scorer.teacher.model.parameters()]
    one.step(examples)
    assert all(torch.equal(a, b) for a, b in zip(start, one.teacher_scorer.teacher.model.parameters(), strict=True))
    one.step(examples)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.student.parameters(), one.teacher_scorer.teacher.model.parameters(), strict=True)
    )
    second = [p.clone() for p in one.student.parameters()]
    one.step(examples)
    assert all(torch.equal(a, b) for a, b in zip(second, one.teacher_scorer.teacher.model.parameters(), strict=True))


def test_the_live_teacher_is_the_student() -> None:
    one = trainer(rule=live())
    assert one.teacher_scorer.teacher.model is one.student and not dict(one.teacher_scorer.weights())


def test_the_reference_model_is_shared_with_a_frozen_teacher_and_kept_apart_otherwise() -> None:
    assert (one := trainer(plain_term(ref_kl), rule=frozen()).teacher_scorer).reference is one.teacher
    moving = trainer(plain_term(ref_kl), distill_term(), rule=ema(ema_decay=0.5))
    start = moving.teacher_scorer.reference
    assert (
        start is not None
        and start.model is not moving.teacher_scorer.teacher.model
        and start.model is not moving.student
    )
    first = moving.step(random_examples(4))
    second = moving.step(random_examples(4))
    assert first["ref_kl/kl"] == pytest.approx(0.0, abs=1e-6) and second["ref_kl/kl"] > 1e-6


def test_several_updates_compare_with_the_policy_before_the_first() -> None:
    examples = random_examples(8)
    once = trainer(plain_term(policy_gradient), updates_per_step=1).step(examples)
    twice = trainer(plain_term(policy_gradient), updates_per_step=2, lr=0.05)
    steps: list[int] = []
    optimizer_of(twice).register_step_post_hook(lambda *_: steps.append(1))
    metrics = twice.step(examples)
    assert len(steps) == 2
    # on-policy, ratio 1: the loss is minus the mean advantage; off-policy the ratio has moved
    assert once["policy_gradient/clip_fraction"] == 0.0 and metrics["policy_gradient/clip_fraction"] > 0.0


def test_without_a_signal_nothing_is_updated() -> None:
    one = trainer()
    before = [p.clone() for p in one.student.parameters()]
    metrics = one.step(random_examples(4, with_teacher=0.0))
    assert metrics["train/loss"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, one.student.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_skipped_and_counted() -> None:
    one = trainer(plain_term(policy_gradient))
    examples = [replace(e, advantage=float("inf")) for e in random_examples(4)]
    before = [p.clone() for p in one.student.parameters()]
    assert one.step(examples)["train/skipped_updates"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, one.student.parameters(), strict=True))


def test_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    examples = random_examples(6)
    one = trainer(rule=ema(ema_decay=0.9), warmup_steps=3)
    one.step(examples)
    one.save(tmp_path)()
    other = trainer(rule=ema(ema_decay=0.9), warmup_steps=3)
    other.load_state(tmp_path, one.state())
    assert one.step(examples) == other.step(examples)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one.weights(), other.weights(), strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            one.teacher_scorer.teacher.model.parameters(), other.teacher_scorer.teacher.model.parameters(), strict=True
        )
    )


def test_thirty_steps_move_the_student_towards_its_privileged_teacher() -> None:
    one = trainer(distill_term(), rule=frozen(), lr=3e-3)
    examples = random_examples(8, with_teacher=1.0)
    divergences = [one.step(examples)["distill/divergence"] for _ in range(30)]
    assert divergences[0] > 0.05, "the privileged prompt must make a difference to begin with"
    assert divergences[-1] < 0.3 * divergences[0]


def test_learning_rate_schedules() -> None:
    rates = {
        name: lr_factor(TrainerSettings(lr_schedule=name, warmup_steps=2), 6)
        for name in ("constant", "linear", "cosine")
    }
    assert [rates["constant"](i) for i in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert [rates["linear"](i) for i in (2, 4, 6)] == [1.0, 0.5, 0.0]
    assert rates["cosine"](4) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_from_zero_is_a_step_behind_and_ends_in_the_same_rate(schedule: str) -> None:
    settings = TrainerSettings(lr_schedule=schedule, warmup_steps=4)
    rate, behind = lr_factor(settings, 10), lr_factor(replace(settings, warmup_from_zero=True), 10)
    assert [behind(i) for i in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0] and [rate(i) for i in range(4)] == [
        0.25,
        0.5,
        0.75,
        1.0,
    ]
    assert [behind(i) for i in range(4, 11)] == [rate(i) for i in range(4, 11)]
    assert [lr_factor(TrainerSettings(warmup_steps=w, warmup_from_zero=True), 10)(0) for w in (0, 1)] == [1.0, 0.0]


def test_a_first_update_at_rate_zero_changes_nothing_and_is_no_fault() -> None:
    one = trainer(distill_term(), rule=frozen(), lr=1e-2, warmup_steps=2, warmup_from_zero=True, weight_decay=0.1)
    examples = random_examples(4, with_teacher=1.0)
    before = [p.clone() for p in one.student.parameters()]
    metrics = one.step(examples)
    assert metrics["train/lr"] == 0.0 and metrics["train/grad_norm"] > 0.0
    assert metrics["train/skipped_updates"] == metrics["train/empty_updates"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, one.student.parameters(), strict=True))
    assert one.step(examples)["train/lr"] == 5e-3
    assert any(not torch.equal(a, b) for a, b in zip(before, one.student.parameters(), strict=True))


def test_shares_of_a_step() -> None:
    assert [len(s) for s in split(random_examples(7), 3)] == [3, 3, 1]
    assert [len(s) for s in split(random_examples(2), 5)] == [1, 1]


def test_the_teachers_numbers_stand_beside_its_own_tokens() -> None:
    """Rollouts without a context before those with one: the mask is the context's, the numbers are the rollout's."""
    examples = sorted(random_examples(8, seed=4), key=lambda e: bool(e.teacher_prompt_ids))
    one = trainer(distill_term())
    batch = one.batching.batch(examples)
    together = one.inputs(batch).teacher["teacher"]
    taught = [bool(e.teacher_prompt_ids) for e in examples]
    assert together.mask.any(-1).tolist() == taught and not taught[0] and taught[-1]
    for row, taught_example in enumerate(examples):
        if taught[row]:
            alone = one.inputs(one.batching.batch([taught_example])).teacher["teacher"]
            length = len(taught_example.rollout.completion_ids)
            torch.testing.assert_close(together.logprobs[row, :length], alone.logprobs[0], atol=1e-5, rtol=1e-4)
