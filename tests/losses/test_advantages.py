"""Advantages and sampled-token losses: by hand, at their published constants, and in expectation.

1. REOPOLD's floor, RLSD's clip, AntiSD's bound, RLCSD, RLRT, DASD's sign at low and high entropy; 2. MiniLLM's split is the
exact gradient of the sequence's KL; 3. k1, k2, k3 in value and gradient, by summing over all tokens; 4. GRPO is DAPO with
equal bounds; dual clip.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onpolicy.losses.advantages import (
    add_keeping_sign,
    bounded_reversal,
    contrastive,
    entropy_directed,
    future_logratio,
    hedging_bonus,
    inverse_teacher,
    multiply,
    on_markers,
    teacher_logratio,
)
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.divergences import reverse_kl
from onpolicy.losses.supports import full
from onpolicy.losses.targets import identity
from onpolicy.losses.terms.distill import distill
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.sampled_kl import sampled_kl
from onpolicy.losses.terms.teacher_advantage import teacher_advantage
from onpolicy.types import LossInputs, TeacherScores


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def inputs(u: Tensor, advantages: Tensor | None = None, **others: Any) -> LossInputs:
    """One row; the student's log-probabilities are -1, the teacher's u above."""
    mask = torch.ones_like(u, dtype=torch.bool)
    logprobs = torch.full_like(u, -1.0)
    contexts = {
        name: TeacherScores(logprobs=logprobs + gaps, entropy=torch.zeros_like(u), mask=mask)
        for name, gaps in {"teacher": u, **others.pop("contexts", {})}.items()
    }
    facts = LossInputs(
        logprobs=logprobs, entropy=torch.zeros_like(u), old_logprobs=logprobs, rollout_logprobs=logprobs, ref_logprobs=None,
        advantages=torch.ones_like(u) if advantages is None else advantages, sampled_mask=mask, divergences={}, teacher=contexts,
    )  # fmt: skip
    return replace(facts, **others)


def only(given: LossInputs, keep: list[bool], context: str = "teacher") -> LossInputs:
    """The context on some of the tokens alone."""
    part = replace(given.teacher[context], mask=torch.tensor([keep]))
    return replace(given, teacher={**given.teacher, context: part})


def test_reopolds_floor() -> None:
    floor = math.log(0.1) / 0.9
    assert floor == pytest.approx(-2.558, abs=5e-4)
    found = teacher_logratio(inputs(row(-20.0, -1.0, 3.0)), floor=floor)
    assert found[0].tolist() == pytest.approx([floor, -1.0, 3.0])
    assert teacher_logratio(only(inputs(row(-20.0, 3.0)), [True, False]), clip=2.0)[0].tolist() == [-2.0, 0.0]


def test_rlsds_clip() -> None:
    advantages = multiply(inputs(row(5.0, -5.0, 0.1), row(2.0, 2.0, -2.0)), share=0.5, clip=0.2)
    assert advantages[0].tolist() == pytest.approx(
        [2 * (0.5 + 0.6), 2 * (0.5 + 0.4), -2 * (0.5 + 0.5 * math.exp(-0.1))]
    )


@given(st.floats(-50, 50), st.floats(-3, 3), st.floats(0, 2))
@settings(max_examples=60, deadline=None)
def test_antisds_bound(u: float, advantage: float, coefficient: float) -> None:
    change = bounded_reversal(inputs(row(u), row(advantage)), coefficient=coefficient)[0, 0].item() - advantage
    assert change <= coefficient * 0.5 * math.log(2) + 1e-5
    assert change == pytest.approx(coefficient * 0.5 * (math.log(2) - math.log1p(math.exp(u))), abs=1e-4)


@given(st.floats(-5, 5), st.floats(-3, 3), st.floats(-10, 10))
@settings(max_examples=60, deadline=None)
def test_the_sign_of_an_advantage_is_kept(u: float, advantage: float, wrong: float) -> None:
    given_ = inputs(row(u), row(advantage), contexts={"contrast": row(wrong)})
    for changed in (
        add_keeping_sign(given_, coefficient=2.0),
        contrastive(given_),
        multiply(given_, clip=0.9),
        inverse_teacher(given_, clip=0.9),
    ):
        assert changed.item() * given_.advantages.item() >= 0


def test_contrast_by_hand() -> None:
    """e = log q+ - log mean q-: .04 gives tanh(2); a common change of style gives nothing; small changes are left out."""
    given_ = inputs(row(0.04, -9.0, 0.0004), row(1.0, 1.0, 1.0), contexts={"contrast": row(0.0, -9.0, 0.0)})
    assert contrastive(given_)[0].tolist() == pytest.approx([1 + 0.5 * math.tanh(2.0), 1.0, 1.0], abs=1e-5)
    against = inputs(
        row(0.0, 1.0), row(-0.3, -0.3), contexts={"a": row(math.log(2.0), 0.0), "b": row(math.log(4.0), 5.0)}
    )
    found = contrastive(only(against, [True, False], "b"), contrast_contexts=["a", "b"], temperature=10.0)
    first = -0.3 + 0.5 * math.tanh(-math.log(3.0) / 10)
    assert found[0].tolist() == pytest.approx([first, -0.3 + 0.5 * math.tanh(0.1)], abs=1e-5)
    untaught = only(inputs(row(1.0), row(-0.3), contexts={"contrast": row(0.0)}), [False], "contrast")
    assert contrastive(untaught).item() == pytest.approx(-0.3), "without a wrong hint nothing changes"


def test_rebellion_needs_success() -> None:
    found = inverse_teacher(inputs(row(-0.1, -0.1, 9.0), row(1.0, -1.0, 1.0)), clip=0.2)
    assert found[0].tolist() == pytest.approx([math.exp(0.1), -1.0, 0.8])


def test_dasd_attracts_where_sure_and_repels_where_not() -> None:
    entropy = row(0.1, 0.1, 0.1, 0.1, 2.0)
    for u in (1.0, -1.0):
        given_ = inputs(torch.full((1, 5), u), row(0.0, 0.0, 0.0, 0.0, 0.0), entropy=entropy)
        change = entropy_directed(given_, coefficient=1.0, share=0.2)[0]
        assert (change[:4] * u > 0).all() and change[4] * u < 0
    # by hand: d = 1; the .8-quantile of the entropies lies at .1 + .2 (2 - .1) = .48; their mean absolute deviation is .608
    omega = math.tanh((0.48 - 0.1) / 0.608) * 0.5
    assert entropy_directed(inputs(torch.ones(1, 5), torch.zeros(1, 5), entropy=entropy), coefficient=1.0)[
        0, 0
    ].item() == pytest.approx(omega, abs=1e-4)


def test_the_mean_of_what_follows() -> None:
    assert future_logratio(inputs(row(1.0, 2.0, 4.0)))[0].tolist() == pytest.approx([3.0, 4.0, 0.0])
    assert future_logratio(only(inputs(row(1.0, 2.0, 4.0)), [True, True, False]))[0].tolist() == pytest.approx(
        [2.0, 0.0, 0.0]
    )


def test_minillms_split_is_the_gradient_of_the_sequences_kl() -> None:
    """Two tokens of three: the sum over all nine sequences of p(y) grad L(y) is the gradient of KL(p || q) of sequences."""
    torch.manual_seed(0)
    first = torch.randn(3, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    q_first, q_second = (
        torch.randn(3, dtype=torch.float64).log_softmax(-1),
        torch.randn(3, 3, dtype=torch.float64).log_softmax(-1),
    )
    p_first, p_second = first.log_softmax(-1), second.log_softmax(-1)
    joint, q_joint = p_first[:, None] + p_second, q_first[:, None] + q_second
    exact = torch.autograd.grad((joint.exp() * (joint - q_joint)).sum(), (first, second), retain_graph=True)
    comparison = Comparison("teacher", full, identity, reverse_kl)
    mask, total = torch.ones(1, 2, dtype=torch.bool), torch.zeros((), dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            logprobs = torch.stack([p_first[a], p_second[a, b]])[None]
            taught = torch.stack([q_first[a], q_second[a, b]])[None]
            both = torch.stack([reverse_kl(p_first, q_first), reverse_kl(p_second[a], q_second[a])])[None]
            facts = LossInputs(
                logprobs=logprobs, entropy=torch.zeros(1, 2), old_logprobs=logprobs.detach(), rollout_logprobs=logprobs.detach(),
                ref_logprobs=None, advantages=torch.zeros(1, 2), sampled_mask=mask, divergences={comparison: both},
                teacher={"teacher": TeacherScores(logprobs=taught, entropy=torch.zeros(1, 2), mask=mask)},
            )  # fmt: skip
            loss = (
                distill(facts, divergence=reverse_kl).per_token
                + teacher_advantage(facts, advantage=future_logratio).per_token
            )
            total = total + joint[a, b].exp().detach() * loss.sum()
    for mine, theirs in zip(torch.autograd.grad(total, (first, second)), exact, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("estimator", "direction"), [("k1", "reverse"), ("k2", "reverse"), ("k3", "forward")])
def test_the_estimators_gradients_in_expectation(estimator: Any, direction: str) -> None:
    torch.manual_seed(1)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    student, teacher = logits.log_softmax(-1), torch.randn(5, dtype=torch.float64).log_softmax(-1)
    facts = inputs(torch.zeros(1, 5, dtype=torch.float64), logprobs=student[None])
    scores = replace(facts.teacher["teacher"], logprobs=teacher[None])
    losses = sampled_kl(replace(facts, teacher={"teacher": scores}), estimator=estimator).per_token[0]
    (mine,) = torch.autograd.grad((student.exp().detach() * losses).sum(), logits, retain_graph=True)
    kl = {
        "reverse": (student.exp() * (student - teacher)).sum(),
        "forward": (teacher.exp() * (teacher - student)).sum(),
    }
    (exact,) = torch.autograd.grad(kl[direction], logits, retain_graph=True)
    torch.testing.assert_close(mine, exact)
    if estimator == "k3":
        assert (student.exp() * losses).sum().item() == pytest.approx(kl["reverse"].item())


def test_the_estimators_by_hand() -> None:
    given_ = inputs(row(0.5, -2.0))
    assert sampled_kl(given_, estimator="k1").per_token[0].tolist() == pytest.approx(
        [0.5, -2.0]
    )  # -u x log p, log p = -1
    assert sampled_kl(given_, estimator="k2").per_token[0].tolist() == pytest.approx([0.125, 2.0])
    assert sampled_kl(given_, estimator="k3").per_token[0].tolist() == pytest.approx(
        [math.exp(0.5) - 1.5, math.exp(-2) + 1]
    )


def test_grpo_is_dapo_with_equal_bounds_and_a_higher_one_lets_rare_tokens_rise() -> None:
    given_ = inputs(row(0.0, 0.0), row(1.0, 1.0), logprobs=row(-1.0 + math.log(1.25), -1.0 + math.log(1.5)))
    grpo = policy_gradient(given_).per_token
    assert torch.equal(grpo, policy_gradient(given_, clip_low=0.2, clip_high=0.2).per_token)
    assert grpo[0].tolist() == pytest.approx([-1.2, -1.2])
    assert policy_gradient(given_, clip_low=0.2, clip_high=0.28).per_token[0].tolist() == pytest.approx([-1.25, -1.28])
    assert policy_gradient(given_, clip_low=None, clip_high=None).per_token[0].tolist() == pytest.approx([-1.25, -1.5])


def test_the_dual_clip_bounds_what_a_bad_token_costs() -> None:
    given_ = inputs(row(0.0, 0.0), row(-1.0, -1.0), logprobs=row(-1.0 + math.log(7.0), -1.0 + math.log(2.0)))
    assert policy_gradient(given_).per_token[0].tolist() == pytest.approx([7.0, 2.0], rel=1e-5)
    assert policy_gradient(given_, dual_clip=3.0).per_token[0].tolist() == pytest.approx([3.0, 2.0], rel=1e-5)


def test_token_weights_weigh_rewards_too() -> None:
    given_ = inputs(row(0.0, 0.0, 0.0), entropy=row(0.1, 2.0, 0.3))
    from onpolicy.losses.token_weights import entropy

    loss = policy_gradient(given_, token_weights=partial(entropy, share=0.3)).per_token[0].tolist()
    assert loss == pytest.approx([0.0, -1.0, 0.0])


def test_a_rule_on_markers_alone_and_its_controls() -> None:
    marks = {"<self_doubt>": torch.tensor([[True, False, False, False, False, False]])}
    mass = {("<student>", "self_doubt"): row(0.5, 0.001, 0.2, 0.001, 0.0, 0.0).log()}
    u = row(-3.0, -3.0, -3.0, 2.0, 2.0, 2.0)
    given_ = inputs(u, torch.zeros(1, 6), spans=marks, marker_mass=mass, entropy=row(2.0, 0.1, 1.9, 0.2, 0.3, 0.4))
    rule = bounded_reversal(given_)[0].tolist()
    on = on_markers(given_, advantage=bounded_reversal)[0]
    assert on.tolist() == pytest.approx([rule[0], 0, rule[2], 0, 0, 0]), (
        "where one was said, and where one could have been"
    )
    off = on_markers(given_, advantage=bounded_reversal, control="others")[0]
    assert (on + off).tolist() == pytest.approx(rule)
    for control in ("any", "like_entropy"):
        assert int((on_markers(given_, advantage=bounded_reversal, control=control)[0] != 0).sum()) == 2  # type: ignore[arg-type]


def test_the_surprise_bonus_by_hand() -> None:
    marks = {"<self_doubt>": torch.tensor([[True, True, True, False]])}
    given_ = inputs(row(-1.0, -9.0, -1.0, -9.0), torch.ones(1, 4), spans=marks, ref_entropy=row(1.0, 1.0, 0.1, 1.0))
    assert hedging_bonus(given_, coefficient=0.1)[0].tolist() == pytest.approx([1.1, 1.2, 1.0, 1.0])
    assert hedging_bonus(given_, coefficient=1.0)[0].tolist() == pytest.approx(
        [1 + 1 / 3, 1 + 2 / 3, 1.0, 1.0]
    )  # 3 cut to 1
    assert hedging_bonus(given_, coefficient=-1.0)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 1.0, 1.0]), (
        "-3 cut to -1"
    )
    for control in ("any", "like_entropy"):
        elsewhere = hedging_bonus(given_, coefficient=0.1, control=control)[0]  # type: ignore[arg-type]
        assert sorted(elsewhere.tolist()) == pytest.approx([1.0, 1.0, 1.1, 1.2]), "the same bonuses"
    paid = {tuple(hedging_bonus(given_, coefficient=0.1, control="any", seed=seed)[0].tolist()) for seed in range(8)}
    assert len(paid) > 2, "on other tokens"
    failed = replace(given_, advantages=-torch.ones(1, 4))
    assert torch.equal(hedging_bonus(failed), failed.advantages)
