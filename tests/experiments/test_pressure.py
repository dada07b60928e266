"""Suppression pressure: the toy of the literature, finite differences, and a real model.

1. one position, 20 % of the student's mass on markers, 1.2 % of the teacher's: what masking sampled markers leaves under a divergence over
the vocabulary (80 %) and under the sampled-token gradient (7 %), and what a floor under the markers' mass leaves (27, 4, 0 %);
2. dM is what a small step on the logits does; 3. nothing is trained; 4. on a real model the floor lowers the pressure, and a frozen
student's own prompt gives none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from onpolicy.epistemic.ids import span_name
from onpolicy.experiments.analysis.pressure import GradientProbe, pressures
from onpolicy.losses.comparison import Distributions
from onpolicy.losses.divergences import forward_kl, reverse_kl
from onpolicy.losses.targets import identity, marker_mass_floor
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.trainer.teacher_rules import frozen
from tests.tiny import random_examples
from tests.trainer.test_teacher import distill_term, trainer, twins

STUDENT, TEACHER = torch.tensor([[0.2, 0.8]]).double().log(), torch.tensor([[0.012, 0.988]]).double().log()
SEEN = Distributions(STUDENT, {}, STUDENT, torch.tensor([0]), {"self_doubt": torch.tensor([0])})


def pressure_of(loss: Callable[[Tensor], Tensor]) -> float:
    """dM of the first of two tokens, for a loss of the log-distribution."""
    return noted(STUDENT, loss, torch.tensor([0])).item()


def noted(logits: Tensor, loss: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """[N] dM of the markers ``ids``."""
    watch = GradientProbe({"self_doubt": ids})
    watch.attach(HiddenStates(logits, Head(torch.eye(logits.shape[-1], dtype=logits.dtype))))
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf.log_softmax(-1)).sum(), leaf)
    watch.note(torch.arange(len(logits)), logits, gradient)
    return watch.changes[:, 0]


def policy_gradient_on_u(student: Tensor, *, token: int) -> Tensor:
    return -(TEACHER - STUDENT)[0, token] * student[0, token]


def test_masking_sampled_markers_leaves_most_of_it_under_a_divergence() -> None:
    """The loss of a position does not depend on what was sampled there: of ten positions two are masked."""
    for divergence in (forward_kl, reverse_kl):
        whole = pressure_of(partial(divergence, teacher=TEACHER))
        assert whole < 0
        masked = 0.2 * 0.0 + 0.8 * whole
        assert masked / whole == pytest.approx(0.8)
    sampled = [pressure_of(partial(policy_gradient_on_u, token=y)) for y in (0, 1)]
    assert 0.8 * sampled[1] / (0.2 * sampled[0] + 0.8 * sampled[1]) == pytest.approx(0.07, abs=0.005)


@pytest.mark.parametrize(("share", "left"), [(0.5, 0.27), (0.9, 0.04), (1.0, 0.0)])
def test_what_a_floor_under_the_mass_leaves(share: float, left: float) -> None:
    floored = marker_mass_floor(TEACHER, SEEN, lexicon="self_doubt", share=share)
    whole, rest = (pressure_of(partial(reverse_kl, teacher=t)) for t in (TEACHER, floored))
    assert rest / whole == pytest.approx(left, abs=0.005)


def test_it_is_what_a_small_step_on_the_logits_does() -> None:
    random = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(5, 9, generator=random, dtype=torch.float64) for _ in range(2))
    ids, step = torch.tensor([1, 4, 7]), 1e-6
    change = noted(logits, lambda student: forward_kl(student, teacher.log_softmax(-1)), ids)
    moved = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forward_kl(moved.log_softmax(-1), teacher.log_softmax(-1)).sum(), moved)
    mass = lambda z: z.softmax(-1)[:, ids].sum(-1)  # noqa: E731
    expected = (mass(logits - step * gradient) - mass(logits + step * gradient)) / (2 * step)
    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-9)


def measured(target: Any, examples: list[Any]) -> Any:
    one = trainer(
        frozen(), distill_term(target), marker_ids={"self_doubt": list(range(3, 40))}, spans=(span_name("self_doubt"),)
    )
    before = [p.clone() for p in one.student.parameters()]
    found = pressures(one, examples)["self_doubt"]
    assert all(torch.equal(a, b) for a, b in zip(before, one.student.parameters(), strict=True))
    assert all(p.grad is None for p in one.student.parameters())
    return found


def test_on_a_real_model() -> None:
    examples = [
        replace(e, spans={span_name("self_doubt"): tuple(i in range(3, 40) for i in e.rollout.completion_ids)})
        for e in random_examples(8, with_teacher=1.0)
    ]
    plain = measured(identity, examples)
    assert (
        plain.tokens == sum(len(e.rollout.completion_ids) for e in examples) and 0 < plain.opportunities <= plain.tokens
    )
    assert plain.relative != 0 and math.isclose(plain.said + plain.unsaid, plain.relative, rel_tol=0.05, abs_tol=1e-4)
    floored = measured(partial(marker_mass_floor, lexicon="self_doubt", share=1.0), examples)
    assert floored.relative > plain.relative
    same = [replace(e, spans={span_name("self_doubt"): (False,) * len(e.rollout.completion_ids)}) for e in twins()]
    assert measured(identity, same).relative == pytest.approx(0.0, abs=1e-7)
