"""Loss terms by hand.

1. distill: divergence times the truncated importance weight; 2. teacher_advantage: -A rho, clipped, and its gradient is
that of the reverse KL in expectation; 3. policy_gradient: every corner of the clip, importance weight, gradient;
4. ref_kl: k3 by hand, zero at equality, never negative.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from onpolicy.losses import advantages
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.divergences import forward_kl, reverse_kl
from onpolicy.losses.supports import full
from onpolicy.losses.targets import identity
from onpolicy.losses.terms.base import spec_of
from onpolicy.losses.terms.cispo import cispo
from onpolicy.losses.terms.distill import distill
from onpolicy.losses.terms.gspo import gspo
from onpolicy.losses.terms.importance import sampler_weight
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.losses.terms.sampled_kl import sampled_kl
from onpolicy.losses.terms.teacher_advantage import teacher_advantage
from onpolicy.types import LossInputs, TeacherScores


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def inputs(logprobs: Tensor, **others: Any) -> LossInputs:
    teacher = others.pop("teacher_logprobs", torch.zeros_like(logprobs))
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    given = LossInputs(
        logprobs=logprobs, entropy=torch.zeros_like(logprobs), old_logprobs=logprobs.detach(), rollout_logprobs=logprobs.detach(),
        ref_logprobs=None, advantages=torch.ones_like(logprobs), sampled_mask=mask, divergences={},
        teacher={"teacher": TeacherScores(logprobs=teacher, entropy=torch.zeros_like(teacher), mask=mask)},
    )  # fmt: skip
    return replace(given, **others)


def test_distill_weighs_the_divergence() -> None:
    comparison = Comparison("teacher", full, identity, forward_kl)
    given = replace(
        inputs(
            row(-1.0, -1.0), old_logprobs=row(-1.0, -1.0), rollout_logprobs=row(-1.0 - math.log(5), -1.0 + math.log(2))
        ),
        divergences={comparison: row(0.3, 0.4)},
    )
    plain = distill(given, divergence=forward_kl)
    assert plain.per_token[0].tolist() == pytest.approx([0.3, 0.4])
    weighted = distill(given, divergence=forward_kl, importance_cap=2.0)
    assert weighted.per_token[0].tolist() == pytest.approx([0.6, 0.2])  # sampler ratios 5 (cut to 2) and 1/2
    moved = replace(given, logprobs=row(-1.0 + math.log(0.5), -1.0 + math.log(3)).requires_grad_())
    later = distill(moved, divergence=forward_kl, importance_cap=2.0)
    assert later.per_token[0].tolist() == pytest.approx([0.3, 0.4])  # times 1/2, and times 3 (cut to 2)
    assert not later.per_token.requires_grad, "weights carry no gradient; the divergence here is a constant"


def test_teacher_advantage_by_hand() -> None:
    given = inputs(row(-1.0, -2.0), teacher_logprobs=row(-0.5, -9.0))
    assert teacher_advantage(given).per_token[0].tolist() == pytest.approx([-0.5, 7.0])
    assert teacher_advantage(given, advantage=partial(advantages.teacher_logratio, clip=1.0)).per_token[
        0
    ].tolist() == pytest.approx([-0.5, 1.0])
    assert teacher_advantage(given).metrics["teacher_gap"][0].tolist() == pytest.approx([0.5, -7.0])


def test_teacher_advantage_is_the_reverse_kl_gradient_in_expectation() -> None:
    """sum_v p_v grad(L_v) = grad KL(student || teacher): summed exactly over all tokens instead of sampled."""
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, dtype=torch.float64).log_softmax(-1)
    logp = logits.log_softmax(-1)
    per_token = teacher_advantage(inputs(logp[None], teacher_logprobs=teacher[None])).per_token[0]
    (sampled,) = torch.autograd.grad((logp.exp().detach() * per_token).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad(reverse_kl(logp, teacher), logits)
    torch.testing.assert_close(sampled, exact)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),  # inside
        (1.5, 2.0, -2.4, 0.0),  # good and already likelier: no further reward
        (0.5, 2.0, -1.0, -1.0),  # good and less likely: pulled back
        (0.5, -2.0, 1.6, 0.0),  # bad and already less likely
        (1.5, -2.0, 3.0, 3.0),  # bad and likelier: pushed down
    ],
)
def test_policy_gradient_at_every_corner_of_the_clip(ratio: float, advantage: float, loss: float, slope: float) -> None:
    logprobs = row(math.log(ratio) - 1.0).requires_grad_()
    given = inputs(logprobs, old_logprobs=row(-1.0), rollout_logprobs=row(-1.0), advantages=row(advantage))
    per_token = policy_gradient(given, clip_low=0.2, clip_high=0.2).per_token
    per_token.sum().backward()
    assert per_token.item() == pytest.approx(loss, abs=1e-5)
    assert logprobs.grad is not None and logprobs.grad.item() == pytest.approx(slope, abs=1e-5)


def test_policy_gradient_corrects_for_the_sampler() -> None:
    given = inputs(row(-1.0, -1.0), rollout_logprobs=row(-1.0 - math.log(1.5), -1.0 - math.log(9)))
    assert policy_gradient(given).per_token[0].tolist() == pytest.approx([-1.5, -2.0])
    assert policy_gradient(given, importance_cap=None).per_token[0].tolist() == pytest.approx([-1.0, -1.0])


def test_policy_gradient_logs_what_an_advantage_changes() -> None:
    """u = -20, 0, 3: A = 1 becomes -1, 1 and 1.3."""
    given = inputs(row(-21.0, -1.0, -4.0), teacher_logprobs=row(-41.0, -1.0, -1.0))
    logged = policy_gradient(given, advantage=partial(advantages.add, coefficient=0.1)).metrics
    assert logged["change"][0].tolist() == pytest.approx([-2.0, 0.0, 0.3])
    assert logged["squared_change"][0].tolist() == pytest.approx([4.0, 0.0, 0.09])
    assert logged["squared_group"][0].tolist() == [1.0, 1.0, 1.0]
    assert "change" not in policy_gradient(given).metrics


def test_advantages_by_hand() -> None:
    """u = -20, 0, +3 with a good answer (A = 1), and with a bad one (A = -1)."""
    good = inputs(row(-21.0, -1.0, -4.0), teacher_logprobs=row(-41.0, -1.0, -1.0))
    bad = replace(good, advantages=-good.advantages)
    assert advantages.add(good, coefficient=0.1)[0].tolist() == pytest.approx([-1.0, 1.0, 1.3])
    assert advantages.add_keeping_sign(good, coefficient=0.1)[0].tolist() == pytest.approx([0.0, 1.0, 1.3])
    assert advantages.multiply(good, share=0.5, clip=0.2)[0].tolist() == pytest.approx([0.9, 1.0, 1.1])
    assert advantages.multiply(bad, share=0.5, clip=0.2)[0].tolist() == pytest.approx([-1.1, -1.0, -0.9])
    reversed_ = advantages.bounded_reversal(good)[0].tolist()
    assert reversed_[0] == pytest.approx(1.0 + 0.5 * math.log(2), abs=1e-6) and reversed_[1] == pytest.approx(1.0)
    assert reversed_[2] == pytest.approx(1.0 - 0.5 * (math.log1p(math.exp(3.0)) - math.log(2)), abs=1e-5)


def test_a_rollout_without_a_context_keeps_its_advantage_and_the_gradient_uses_the_changed_one() -> None:
    given = inputs(row(-1.0, -1.0).requires_grad_(), teacher_logprobs=row(0.0, 0.0))
    taught = replace(given.teacher["teacher"], mask=torch.tensor([[True, False]]))
    given = replace(given, teacher={"teacher": taught})
    rule = partial(advantages.add, coefficient=0.5)
    assert policy_gradient(given, advantage=rule).per_token[0].tolist() == pytest.approx([-1.5, -1.0])


def test_gspo_is_the_sequence_level_objective() -> None:
    """Summed over a sequence and divided by its length: -s A, with the gradient of the sequence's own ratio."""
    old = row(-1.0, -2.0, -0.5)
    logprobs = row(-0.9, -2.2, -0.4).requires_grad_()
    given = inputs(logprobs, old_logprobs=old, rollout_logprobs=old, advantages=row(2.0, 2.0, 2.0))
    loss = gspo(given, clip_low=0.5, clip_high=0.5).per_token.sum() / 3
    (mine,) = torch.autograd.grad(loss, logprobs)
    ratio = ((logprobs - old).sum() / 3).exp()
    (theirs,) = torch.autograd.grad(-2.0 * ratio, logprobs)
    assert loss.item() == pytest.approx(-2.0 * ratio.item(), abs=1e-6)
    torch.testing.assert_close(mine, theirs)
    clipped = gspo(
        replace(given, old_logprobs=row(-3.0, -3.0, -3.0)), clip_low=0.1, clip_high=0.1, importance_cap=None
    ).per_token
    assert (
        clipped[0].tolist() == pytest.approx([-2.2] * 3, abs=1e-5)
        and not torch.autograd.grad(clipped.sum(), logprobs)[0].any()
    )


def test_cispo_keeps_every_tokens_gradient() -> None:
    logprobs = row(math.log(0.9), math.log(0.1)).requires_grad_()
    old = row(math.log(0.1), math.log(0.2))
    given = inputs(logprobs, old_logprobs=old, rollout_logprobs=old, advantages=row(1.0, -1.0))
    output = cispo(given, clip_high=2.0)
    assert output.per_token[0].tolist() == pytest.approx(
        [-3.0 * math.log(0.9), 0.5 * math.log(0.1)], abs=1e-5
    )  # 9 cut to 3
    (grad,) = torch.autograd.grad(output.per_token.sum(), logprobs)
    assert grad[0].tolist() == pytest.approx([-3.0, 0.5], abs=1e-5)


def test_start_kl_by_hand() -> None:
    given = inputs(row(-1.0, -1.0, -3.0), ref_logprobs=row(-1.0, -2.0, -1.0))
    expected = [0.0, math.exp(-1) + 1 - 1, math.exp(2) - 2 - 1]
    assert ref_kl(given).per_token[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert spec_of(ref_kl).needs_ref and spec_of(distill).tokens == "teacher_mask"


def test_the_estimate_of_the_kl_can_be_cut() -> None:
    """d = 2 gives e^2 - 3 = 4.39, below the cap; 4 gives e^4 - 5 = 49.6, above it; 100 and -100 are finite, without gradient."""
    gaps = torch.tensor([[2.0, 4.0, 100.0, -100.0]])
    logprobs = torch.zeros(1, 4, requires_grad=True)
    losses = ref_kl(inputs(logprobs, ref_logprobs=gaps), token_clip=10.0).per_token
    assert losses[0].tolist() == pytest.approx([math.exp(2) - 3, 10.0, 10.0, 10.0])
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    assert gradient[0].tolist() == pytest.approx([1 - math.exp(2), 0.0, 0.0, 0.0])  # dL/d logprob = 1 - e^d
    taught = sampled_kl(inputs(logprobs, teacher_logprobs=gaps), estimator="k3", token_clip=10.0).per_token
    assert torch.equal(taught, losses)
    assert not torch.isfinite(ref_kl(inputs(logprobs, ref_logprobs=gaps)).per_token[0, 2]), "without a cap: e^100"


def test_the_teacher_against_the_sampler() -> None:
    """log q = -1, the old student -2, the sampler -3: u is 1 against the one and 2 against the other."""
    given = inputs(
        torch.tensor([[-2.0]]), rollout_logprobs=torch.tensor([[-3.0]]), teacher_logprobs=torch.tensor([[-1.0]])
    )
    assert advantages.teacher_logratio(given).item() == 1.0
    assert advantages.teacher_logratio(given, against="sampler").item() == 2.0


def test_one_sampler_weight_for_a_completion() -> None:
    """Ratios 1/2 and 4, capped at 2: 1.25 on average, on both tokens; over the term's own tokens only where it names them."""
    given = inputs(torch.zeros(1, 2), rollout_logprobs=torch.tensor([[math.log(2.0), -math.log(4.0)]]))
    assert sampler_weight(given, 2.0)[0].tolist() == pytest.approx([0.5, 2.0])
    assert sampler_weight(given, 2.0, "sequence")[0].tolist() == pytest.approx([1.25, 1.25])
    second = replace(given, tokens=torch.tensor([[False, True]]))
    assert sampler_weight(second, 2.0, "sequence")[0].tolist() == pytest.approx([2.0, 2.0])
