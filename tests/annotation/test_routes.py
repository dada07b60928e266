"""Which rollouts go where, and what a term is then a mean over.

1. every route by hand; 2. a routed term's loss under each normaliser, by hand; 3. micro-batches do not change it; 4. SDPO's
loss on tensors equals its published formula: tail, both importance weights, masked samples that count in the mean.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onpolicy.annotation import routes
from onpolicy.annotation.credit import group_mean, group_std, leave_one_out
from onpolicy.losses.comparison import Comparison, Distributions
from onpolicy.losses.divergences import jsd
from onpolicy.losses.objective import Objective, Term, Totals
from onpolicy.losses.supports import student_topk
from onpolicy.losses.targets import identity
from onpolicy.losses.terms.base import TermSpec, spec_of
from onpolicy.losses.terms.distill import distill
from onpolicy.types import LossInputs, TeacherScores, TermOutput


@pytest.mark.parametrize(
    ("route", "shares"),
    [
        (routes.all, [1, 1, 1, 1]),
        (routes.failures, [0, 1, 1, 0]),
        (routes.correct, [1, 0, 0, 1]),
        (routes.mixed, [1, 1, 1, 1]),
        (routes.frontier, [1, 1, 1, 1]),
        (routes.zero_variance, [0, 0, 0, 0]),
        (routes.above_average, [1, 0, 0, 1]),
        (routes.not_above_average, [0, 1, 1, 0]),
    ],
)
def test_routes_by_hand(route: Any, shares: list[float]) -> None:
    assert [route([1.0, 0.0, 0.2, 0.9], i) for i in range(4)] == shares


def test_routes_of_groups_without_a_difference() -> None:
    for scores in ([1.0, 1.0], [0.0, 0.0]):
        assert routes.mixed(scores, 0) == routes.frontier(scores, 0) == routes.above_average(scores, 0) == 0
        assert routes.zero_variance(scores, 0) == routes.not_above_average(scores, 0) == 1
    assert routes.frontier([1.0, 0.0, 0.0, 0.0], 0) == pytest.approx(0.75)


def three_rows(route: list[float]) -> LossInputs:
    """Rows of 3, 1 and 2 tokens whose losses are 1, 10 and 100 a token."""
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    logprobs = (torch.tensor([[1.0], [10.0], [100.0]]) * mask).requires_grad_()
    zero = torch.zeros(3, 3)
    return LossInputs(
        logprobs=logprobs, entropy=zero, old_logprobs=zero, rollout_logprobs=zero, ref_logprobs=None, advantages=zero,
        sampled_mask=mask, teacher={}, divergences={}, routes={"term": torch.tensor(route)},
    )  # fmt: skip


def loss_of(given: LossInputs, normalize: str, parts: list[slice]) -> float:
    term = Term("term", 1.0, lambda i: TermOutput(per_token=i.logprobs), TermSpec(), normalize=normalize, max_tokens=5)
    cut = [
        replace(given, **{n: getattr(given, n)[p] for n in ("logprobs", "sampled_mask")}, routes={"term": given.routes["term"][p]})
        for p in parts
    ]  # fmt: skip
    totals = Objective((term,)).count(cut)  # type: ignore[arg-type]
    return sum(Objective((term,)).loss(part, totals).item() for part in cut)


@pytest.mark.parametrize(
    ("normalize", "whole", "routed", "weighed"),
    [
        ("tokens", (3 + 10 + 200) / 6, (3 + 200) / 5, (3 + 100) / 5),
        ("sequences", (1 + 10 + 100) / 3, (1 + 100) / 2, (1 + 50) / 2),
        ("all_sequences", (1 + 10 + 100) / 3, (1 + 100) / 3, (1 + 50) / 3),
        ("max_tokens", (3 + 10 + 200) / 15, (3 + 200) / 15, (3 + 100) / 15),
    ],
)
@pytest.mark.parametrize("parts", [[slice(0, 3)], [slice(0, 1), slice(1, 3)]], ids=["whole", "cut"])
def test_what_a_routed_term_is_a_mean_over(
    normalize: str, whole: float, routed: float, weighed: float, parts: list[slice]
) -> None:
    assert loss_of(three_rows([1, 1, 1]), normalize, parts) == pytest.approx(whole)
    assert loss_of(three_rows([1, 0, 1]), normalize, parts) == pytest.approx(routed)
    assert loss_of(three_rows([1, 0, 0.5]), normalize, parts) == pytest.approx(weighed)


@given(
    st.integers(0, 10_000),
    st.sampled_from(["tokens", "sequences", "all_sequences", "max_tokens"]),
    st.sets(st.integers(1, 5)),
)
@settings(max_examples=60, deadline=None)
def test_how_rows_are_batched_never_matters(seed: int, normalize: str, cuts: set[int]) -> None:
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(4) < torch.randint(1, 5, (6, 1), generator=random)
    zero = torch.zeros(6, 4)
    whole = LossInputs(
        logprobs=torch.randn(6, 4, generator=random), entropy=zero, old_logprobs=zero, rollout_logprobs=zero, ref_logprobs=None,
        advantages=zero, sampled_mask=mask, teacher={}, divergences={}, routes={"term": torch.randint(0, 3, (6,), generator=random) / 2},
    )  # fmt: skip
    edges = [0, *sorted(cuts), 6]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    assert loss_of(whole, normalize, parts) == pytest.approx(
        loss_of(whole, normalize, [slice(0, 6)]), rel=1e-5, abs=1e-6
    )


def published_sdpo(
    student: Tensor, teacher: Tensor, sampled: Tensor, old: Tensor, rollout: Tensor, mask: Tensor, sample: Tensor
) -> Tensor:
    """The loss as the paper's code states it (arXiv 2603.24472): top-k of the student, tail log(-expm1(logsumexp)), JSD at one
    half, weights cut at 2, mean over tokens for each sequence, then over all sequences, masked ones counted as 0."""
    top = student.topk(3, dim=-1).indices

    def with_tail(logprobs: Tensor) -> Tensor:
        chosen = logprobs.gather(-1, top)
        total = chosen.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
        return torch.cat([chosen, torch.log(-torch.expm1(total))], -1)

    s, t = with_tail(student), with_tail(teacher)
    m = torch.logsumexp(torch.stack([s, t]), 0) - math.log(2.0)
    divergence = 0.5 * (s.exp() * (s - m)).sum(-1) + 0.5 * (t.exp() * (t - m)).sum(-1)
    current = student.gather(-1, sampled[..., None])[..., 0]
    ratio = (current - old).clamp(-20, 20).exp().clamp(max=2.0).detach()
    weight = (old - rollout).exp().clamp(max=2.0)
    per_sequence = (divergence * ratio * weight * mask).sum(-1) / mask.sum(-1)
    return (per_sequence * sample).mean()


def test_sdpos_loss_is_the_published_formula() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 9, generator=random, dtype=torch.float64).mul(2).requires_grad_()
    student, teacher = (
        logits.log_softmax(-1),
        torch.randn(4, 5, 9, generator=random, dtype=torch.float64).mul(2).log_softmax(-1),
    )
    sampled = torch.randint(0, 9, (4, 5), generator=random)
    current = student.gather(-1, sampled[..., None])[..., 0]
    old = current.detach() + torch.randn(4, 5, generator=random, dtype=torch.float64)
    rollout = old + torch.randn(4, 5, generator=random, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 2, 3, 4])[:, None]
    sample = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)  # the second and fourth have no successful sibling
    divergence, support = partial(jsd, beta=0.5), partial(student_topk, k=3)
    comparison = Comparison("teacher", support, identity, divergence)
    seen = Distributions(student.detach(), {"teacher": teacher}, None, sampled, {})
    scores = TeacherScores(logprobs=torch.zeros(4, 5), entropy=torch.zeros(4, 5), mask=mask & (sample > 0)[:, None])
    divergences = {comparison: comparison.compare(student, seen)}
    given = LossInputs(
        logprobs=current, entropy=torch.zeros(4, 5), old_logprobs=old, rollout_logprobs=rollout, ref_logprobs=None,
        advantages=torch.zeros(4, 5), sampled_mask=mask, teacher={"teacher": scores}, divergences=divergences,
    )  # fmt: skip
    bound = partial(distill, divergence=divergence, support=support, importance_cap=2.0)
    term = Term("distill", 1.0, bound, spec_of(distill), ("teacher",), normalize="all_sequences", comparison=comparison)
    objective = Objective((term,))
    ours = objective.loss(given, Totals({"distill": 4}))
    theirs = published_sdpo(student, teacher, sampled, old, rollout, mask, sample)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    mine, expected = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs))
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("credit", [group_mean, group_std, leave_one_out])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_equal_rewards_give_exactly_zero_whatever_their_value(credit: Any, size: int) -> None:
    for value in (0.0, 0.1, 0.35, 1 / 3, -0.7, 1e-9, 1e17, 2.3e-300):
        assert credit([value] * size) == [0.0] * size
        assert routes.zero_variance([value] * size, 0) == 1.0 and routes.above_average([value] * size, size - 1) == 0.0
    assert credit([0.1 + 0.2, 0.3, 0.6 / 2]) == [0.0] * 3, "nor what rounding leaves in a sum"
    assert 0.0 not in credit([0.1, 0.1 + 1e-9]), "a small difference is one"
