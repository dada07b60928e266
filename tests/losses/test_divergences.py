"""Divergences: worked by hand, against a slow oracle in float64, and by their laws.

1. numbers worked out on paper; 2. value and gradient equal a loop over entries in float64; 3. zero at equality, never
negative, jsd bounded; 4. finite, value and gradient, where a probability is 0 or logits are extreme; 5. the direction
is what the name says; 6. beta 0 and 1 are refused by name.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onpolicy.losses.divergences import forward_kl, jsd, reverse_kl, skew_forward_kl, skew_reverse_kl

HALF = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": lambda s, t: jsd(s, t, beta=0.3),
    "skew_forward_kl": lambda s, t: skew_forward_kl(s, t, alpha=0.2),
    "skew_reverse_kl": lambda s, t: skew_reverse_kl(s, t, alpha=0.2),
}


def oracle(name: str, student: Tensor, teacher: Tensor) -> float:
    """One distribution pair, entry by entry, in float64 Python."""
    p, q = student.double().exp().tolist(), teacher.double().exp().tolist()

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    if name == "forward_kl":
        return kl(q, p)
    if name == "reverse_kl":
        return kl(p, q)
    if name == "skew_forward_kl":
        return kl(q, [0.2 * y + 0.8 * x for x, y in zip(p, q, strict=True)])
    if name == "skew_reverse_kl":
        return kl(p, [0.2 * x + 0.8 * y for x, y in zip(p, q, strict=True)])
    m = [0.3 * y + 0.7 * x for x, y in zip(p, q, strict=True)]
    return 0.3 * kl(q, m) + 0.7 * kl(p, m)


def test_by_hand() -> None:
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    # KL(teacher||student) = .75 ln 1.5 + .25 ln .5;  KL(student||teacher) = .5 ln(2/3) + .5 ln 2
    assert forward_kl(student, teacher).item() == pytest.approx(0.130812, abs=1e-6)
    assert reverse_kl(student, teacher).item() == pytest.approx(0.143841, abs=1e-6)
    # m = (.625, .375): .5 (.75 ln 1.2 + .25 ln 2/3) + .5 (.5 ln .8 + .5 ln 4/3)
    assert jsd(student, teacher, beta=0.5).item() == pytest.approx(0.033822, abs=1e-6)


def test_jsd_weights_the_teacher_by_beta() -> None:
    student, teacher = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.2, 0.8]).log()
    m = torch.tensor([0.9 * 0.2 + 0.1 * 0.9, 0.9 * 0.8 + 0.1 * 0.1]).log()
    expected = 0.9 * forward_kl(m, teacher) + 0.1 * forward_kl(m, student)
    assert jsd(student, teacher, beta=0.9).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("name", HALF)
def test_equals_the_oracle_in_value(name: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 17).mul(3).log_softmax(-1), torch.randn(5, 17).mul(3).log_softmax(-1)
    expected = torch.tensor([oracle(name, s, t) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(HALF[name](student, teacher), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HALF)
def test_gradient_by_finite_differences(name: str) -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 7, dtype=torch.float64).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda x: HALF[name](x.log_softmax(-1), teacher), (logits,))


@given(st.integers(0, 10_000), st.floats(0.1, 30.0), st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_laws(seed: int, scale: float, beta: float) -> None:
    random = torch.Generator().manual_seed(seed)
    student = (torch.randn(4, 9, generator=random, dtype=torch.float64) * scale).log_softmax(-1)
    teacher = (torch.randn(4, 9, generator=random, dtype=torch.float64) * scale).log_softmax(-1)
    bound = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))
    for value in (forward_kl(student, teacher), reverse_kl(student, teacher), jsd(student, teacher, beta=beta)):
        assert (value >= -1e-12).all() and value.isfinite().all()
    assert (jsd(student, teacher, beta=beta) <= bound + 1e-12).all()
    for value in (forward_kl(student, student), reverse_kl(student, student), jsd(student, student, beta=beta)):
        assert value.abs().max() < 1e-12


@pytest.mark.parametrize("name", HALF)
def test_zero_probability_contributes_nothing_and_leaves_gradients_finite(name: str) -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    value = HALF[name](logits.log_softmax(-1), teacher)
    value.sum().backward()
    two = HALF[name](torch.tensor([[1.0, 2.0]]).log_softmax(-1), torch.tensor([[0.5, 0.5]]).log())
    assert value.item() == pytest.approx(two.item(), abs=1e-6)
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, 0.0, -1e4]]).log_softmax(-1)
    teacher = torch.tensor([[-1e4, 0.0, 1e4]]).log_softmax(-1)
    assert jsd(student, teacher, beta=0.5).item() == pytest.approx(math.log(2), abs=1e-6)
    assert forward_kl(student, teacher).isfinite().all()


def test_the_name_says_the_direction() -> None:
    """A student that misses a mode of the teacher is punished by the forward KL, hardly by the reverse."""
    student, teacher = torch.tensor([0.999, 0.001]).log(), torch.tensor([0.5, 0.5]).log()
    assert forward_kl(student, teacher).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.999) + 0.5 * math.log(0.5 / 0.001), abs=1e-5
    )


@pytest.mark.parametrize(
    ("beta", "name"), [(0.0, "forward_kl"), (1.0, "reverse_kl"), (1.5, "reverse_kl"), (-1.0, "forward_kl")]
)
def test_the_ends_of_beta_are_refused_by_name(beta: float, name: str) -> None:
    student = torch.zeros(2).log_softmax(-1)
    with pytest.raises(ValueError, match=name):
        jsd(student, student, beta=beta)


def test_skewed_divergences_are_bounded_and_meet_the_plain_ones() -> None:
    student, teacher = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
    assert skew_forward_kl(student, teacher, alpha=0.1).item() == pytest.approx(-math.log(0.1), abs=1e-5)
    assert skew_reverse_kl(student, teacher, alpha=0.1).item() == pytest.approx(-math.log(0.1), abs=1e-5)
    one, other = torch.randn(5).log_softmax(-1), torch.randn(5).log_softmax(-1)
    torch.testing.assert_close(skew_forward_kl(one, other, alpha=0.0), forward_kl(one, other))
    torch.testing.assert_close(skew_reverse_kl(one, other, alpha=0.0), reverse_kl(one, other))
    with pytest.raises(ValueError, match="alpha"):
        skew_forward_kl(one, other, alpha=1.0)
