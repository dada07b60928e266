"""Divergences: two log-distributions ``[..., K]``, each of which sums to one -> ``[...]`` in nats.

The order of the arguments is always ``(student, teacher)``; the name gives the direction. Entries of probability 0
contribute 0. A plug-in of this kind has the same shape: ``fn(student, teacher, *, options)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def forward_kl(student: Tensor, teacher: Tensor, *, entry_clip: float | None = None) -> Tensor:
    """KL(teacher || student) = sum_v teacher_v (log teacher_v - log student_v). Mode-covering.

    GKD (arXiv 2306.13649), OPSD (2601.18734, later versions) and SDFT (2601.19897, as run) train with it.

    Args:
        entry_clip: upper bound of each entry's contribution before the sum (OPSD: 0.05); the result can be negative. Clipped
            entries have no gradient: that of the logits is M student_v - teacher_v [v not clipped], with M the teacher's mass of
            the others, so where the teacher's choice is clipped, descent lowers it
    """
    return _expectation(teacher, teacher - student, entry_clip)


def reverse_kl(student: Tensor, teacher: Tensor, *, entry_clip: float | None = None) -> Tensor:
    """KL(student || teacher) = sum_v student_v (log student_v - log teacher_v). Mode-seeking.

    MiniLLM (arXiv 2306.08543), equation 1 of arXiv 2603.24472.

    Args:
        entry_clip: upper bound of each entry's contribution before the sum; the result can be negative
    """
    return _expectation(student, student - teacher, entry_clip)


def jsd(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), with m = beta teacher + (1 - beta) student.

    The generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649, equation 1); bounded by the entropy of
    (beta, 1 - beta), ln 2 at one half. It vanishes at both ends, where other libraries special-case it to a KL that is
    thousands of times larger: here the KL has to be named.

    Args:
        beta: weight of the teacher in the mixture, strictly between 0 and 1
    """
    if not 0.0 < beta < 1.0:
        right = "reverse_kl" if beta >= 1.0 else "forward_kl"
        raise ValueError(f"jsd: beta must lie strictly between 0 and 1, got {beta}; for the limit use {right}")
    mixture = _mixture(teacher, student, beta)
    return beta * _expectation(teacher, teacher - mixture) + (1.0 - beta) * _expectation(student, student - mixture)


def skew_forward_kl(student: Tensor, teacher: Tensor, *, alpha: float = 0.1) -> Tensor:
    """KL(teacher || alpha teacher + (1 - alpha) student): a forward KL to a mixture that is never 0 where the teacher is not.

    DistiLLM (arXiv 2402.03898); bounded by -log alpha, and the forward KL at alpha 0.

    Args:
        alpha: weight of the teacher in the mixture, 0 to below 1
    """
    return forward_kl(_mixture(teacher, student, alpha), teacher)


def skew_reverse_kl(student: Tensor, teacher: Tensor, *, alpha: float = 0.1) -> Tensor:
    """KL(student || alpha student + (1 - alpha) teacher): bounded by -log alpha, and the reverse KL at alpha 0.

    DistiLLM (arXiv 2402.03898).

    Args:
        alpha: weight of the student in the mixture, 0 to below 1
    """
    return reverse_kl(student, _mixture(student, teacher, alpha))


def _mixture(one: Tensor, other: Tensor, share: float) -> Tensor:
    """log(share one + (1 - share) other)."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"alpha must lie between 0 and below 1, got {share}")
    if share == 0.0:
        return other
    finite = torch.finfo(one.dtype).min / 4  # logaddexp(-inf, -inf) has no gradient
    return torch.logaddexp(one.clamp(min=finite) + math.log(share), other.clamp(min=finite) + math.log1p(-share))


def _expectation(logprobs: Tensor, values: Tensor, cap: float | None = None) -> Tensor:
    """sum_v min(p_v values_v, cap), with 0 where p_v = 0: ``values`` may be infinite there and must not reach the gradient."""
    dead = logprobs == -torch.inf
    contributions = logprobs.masked_fill(dead, 0.0).exp() * values.masked_fill(dead, 0.0)
    return (contributions if cap is None else contributions.clamp(max=cap)).sum(-1)
