"""The loss: a weighted sum of terms, each over its own tokens.

1. worked by hand with two terms on different tokens; 2. the shares of micro-batches add up to the whole; 3. a nan on a
padded position does not leak; 4. a term of the wrong shape is named; 5. a term without tokens contributes 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from onpolicy.config.resolved import unique_names
from onpolicy.losses.objective import MetricAccumulator, Objective, Term, Totals
from onpolicy.losses.terms.base import TermSpec
from onpolicy.types import LossInputs, TeacherScores, TermOutput


def inputs(logprobs: Tensor, mask: Tensor, teacher_mask: Tensor | None = None) -> LossInputs:
    zero = torch.zeros_like(logprobs)
    teacher = TeacherScores(logprobs=zero, entropy=zero, mask=mask if teacher_mask is None else teacher_mask)
    return LossInputs(
        logprobs=logprobs, entropy=zero, old_logprobs=logprobs.detach(), rollout_logprobs=zero, ref_logprobs=None,
        advantages=torch.ones_like(logprobs), sampled_mask=mask, teacher={"teacher": teacher}, divergences={},
    )  # fmt: skip


def term(name: str, function, weight: float = 1.0, tokens: Any = "sampled_mask") -> Term:  # type: ignore[no-untyped-def]
    return Term(
        name=name,
        weight=weight,
        function=function,
        spec=TermSpec(tokens=tokens),
        contexts=("teacher",),
        comparison=None,
    )


def nll(given: LossInputs) -> TermOutput:
    return TermOutput(per_token=-given.logprobs, metrics={"twice": -2 * given.logprobs})


def square(given: LossInputs) -> TermOutput:
    return TermOutput(per_token=given.logprobs**2)


def test_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    taught = torch.tensor([[True, True], [False, False]])
    objective = Objective((term("nll", nll), term("square", square, weight=0.5, tokens="teacher_mask")))
    metrics = MetricAccumulator()
    loss = objective.loss(inputs(logprobs, mask, taught), Totals({"nll": 3, "square": 2}), metrics)
    # (1 + 2 + 3) / 3 + .5 (1 + 4) / 2
    assert loss.item() == pytest.approx(2.0 + 1.25)
    assert metrics.means() == pytest.approx({"nll/loss": 2.0, "nll/twice": 4.0, "square/loss": 2.5})


def test_mean_over_sequences_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-8.0, -9.0, -9.0], [-5.0, -5.0, -5.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    one = replace(term("nll", nll), normalize="sequences")
    objective = Objective((one,))
    assert one.denominator(inputs(logprobs, mask)) == 2
    assert objective.loss(inputs(logprobs, mask), Totals({"nll": 2})).item() == pytest.approx((2.0 + 8.0) / 2)
    shares = [objective.loss(inputs(logprobs[i : i + 1], mask[i : i + 1]), Totals({"nll": 2})) for i in range(3)]
    assert torch.stack(shares).sum().item() == pytest.approx(5.0)


def test_shares_of_micro_batches_add_up() -> None:
    torch.manual_seed(0)
    logprobs, mask = torch.randn(6, 5), torch.rand(6, 5) > 0.4
    objective = Objective((term("nll", nll), term("square", square, weight=2.0)))
    counts = Totals({"nll": int(mask.sum()), "square": int(mask.sum())})
    whole = objective.loss(inputs(logprobs, mask), counts)
    for size in (1, 2, 4):
        shares = [objective.loss(inputs(logprobs[i : i + size], mask[i : i + size]), counts) for i in range(0, 6, size)]
        assert torch.stack(shares).sum().item() == pytest.approx(whole.item(), abs=1e-6)


def test_a_nan_on_padding_does_not_leak() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])

    def poisoned(given: LossInputs) -> TermOutput:
        return TermOutput(per_token=-given.logprobs + torch.tensor([[0.0, float("nan")]]))

    loss = Objective((term("poisoned", poisoned),)).loss(inputs(logprobs, mask), Totals({"poisoned": 1}))
    loss.backward()
    assert loss.item() == 1.0 and logprobs.grad is not None and logprobs.grad.tolist() == [[-1.0, 0.0]]


def test_a_term_of_the_wrong_shape_is_named() -> None:
    def summed(given: LossInputs) -> TermOutput:
        return TermOutput(per_token=given.logprobs.sum())

    with pytest.raises(ValueError, match=r"'summed'.*\(1, 2\)"):
        Objective((term("summed", summed),)).loss(
            inputs(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)), Totals({"summed": 2})
        )


def test_a_term_without_tokens_contributes_nothing() -> None:
    given = inputs(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool))
    objective = Objective((term("square", square, tokens="teacher_mask"),))
    assert objective.loss(given, Totals({"square": 0})).item() == 0.0
    metrics = MetricAccumulator()
    objective.loss(replace(given), Totals({"square": 0}), metrics)
    assert metrics.means() == {}, "a mean over nothing is no number"


def test_names_of_equal_terms() -> None:
    assert unique_names(["distill", "policy_gradient", "distill"]) == ["distill", "policy_gradient", "distill_2"]
