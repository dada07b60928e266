"""Supports: where two distributions are compared.

1. both come back summing to one; 2. worked by hand with tail bucket and renormalised; 3. with a tail bucket no
divergence exceeds the full one; 4. k as large as the vocabulary is the full comparison; 5. the tail's gradient is that
of the formula, also where almost nothing is left in the tail; 6. the teacher's choice and the student's differ.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onpolicy.losses import supports
from onpolicy.losses.divergences import forward_kl, jsd, reverse_kl
from onpolicy.losses.supports import restrict


def on(support, student, teacher, **options):  # type: ignore[no-untyped-def]
    entries = support(student, teacher, **options)
    return restrict(student, entries), restrict(teacher, entries)


full, student_topk, teacher_topk = (
    partial(on, s) for s in (supports.full, supports.student_topk, supports.teacher_topk)
)


def pair(seed: int, vocabulary: int = 12, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    draw = lambda: (torch.randn(3, vocabulary, generator=random, dtype=torch.float64) * scale).log_softmax(-1)  # noqa: E731
    return draw(), draw()


@pytest.mark.parametrize("support", [teacher_topk, student_topk])
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_both_sum_to_one(support, tail) -> None:  # type: ignore[no-untyped-def]
    student, teacher = support(*pair(0), k=4, tail=tail)
    assert student.shape[-1] == teacher.shape[-1] == (5 if tail == "bucket" else 4)
    torch.testing.assert_close(student.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(teacher.exp().sum(-1), torch.ones(3, dtype=torch.float64))


def test_by_hand() -> None:
    student, teacher = torch.tensor([0.1, 0.2, 0.3, 0.4]).log(), torch.tensor([0.6, 0.3, 0.05, 0.05]).log()
    s, t = teacher_topk(student, teacher, k=2)
    torch.testing.assert_close(s.exp(), torch.tensor([0.1, 0.2, 0.7]))
    torch.testing.assert_close(t.exp(), torch.tensor([0.6, 0.3, 0.1]))
    s, t = student_topk(student, teacher, k=2, tail="renormalize")
    torch.testing.assert_close(s.exp(), torch.tensor([4 / 7, 3 / 7]))
    torch.testing.assert_close(t.exp(), torch.tensor([0.5, 0.5]))


@given(st.integers(0, 10_000), st.integers(1, 11), st.floats(0.1, 10.0))
@settings(max_examples=60, deadline=None)
def test_with_a_bucket_no_divergence_exceeds_the_full_one(seed: int, k: int, scale: float) -> None:
    student, teacher = pair(seed, scale=scale)
    for divergence in (forward_kl, reverse_kl, lambda s, t: jsd(s, t, beta=0.5)):
        whole = divergence(*full(student, teacher))
        for support in (teacher_topk, student_topk):
            assert (divergence(*support(student, teacher, k=k)) <= whole + 1e-9).all()


def test_all_entries_are_the_full_comparison() -> None:
    student, teacher = pair(3)
    torch.testing.assert_close(forward_kl(*teacher_topk(student, teacher, k=99)), forward_kl(student, teacher))


def test_the_gradient_reaches_the_tail_also_when_it_is_nearly_empty() -> None:
    logits = torch.tensor([[30.0, 29.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.3, 0.3, 0.2, 0.2]], dtype=torch.float64).log()
    value = forward_kl(*student_topk(logits.log_softmax(-1), teacher, k=2)).sum()
    (grad,) = torch.autograd.grad(value, logits)
    # d KL(T||S) / d logit_v = S_v - T_v for top entries; the tail's share of T splits as S does within the tail
    p = logits.detach().softmax(-1)
    inside = p[0, 2:] / p[0, 2:].sum()
    expected = torch.cat([p[0, :2] - 0.3, p[0, 2:] - 0.4 * inside])
    torch.testing.assert_close(grad[0], expected)


def test_whose_top_it_is() -> None:
    student, teacher = torch.tensor([0.9, 0.05, 0.05]).log(), torch.tensor([0.05, 0.05, 0.9]).log()
    assert student_topk(student, teacher, k=1)[0].exp()[0].item() == pytest.approx(0.9)
    assert teacher_topk(student, teacher, k=1)[1].exp()[0].item() == pytest.approx(0.9)
    assert teacher_topk(student, teacher, k=1)[0].exp()[0].item() == pytest.approx(0.05)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"support\.k"):
        teacher_topk(*pair(0), k=0)
