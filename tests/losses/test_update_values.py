"""What a term needs to know of the whole optimizer update.

1. `select` takes tokens out of the mean, by hand; 2. a quantile, a mean, a whitening over the update: by hand, and the same however
the update is cut into micro-batches and spread over ranks; 3. questions that depend on the answers to earlier ones; 4. what selects
by masks alone, and what is divided by a constant, needs no survey.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onpolicy.losses.advantages import contrast_changes, contrastive, whitened_logratio_to_go
from onpolicy.losses.objective import Objective, Term, Totals
from onpolicy.losses.terms.base import TermSpec
from onpolicy.losses.token_weights import (
    entropy,
    entropy_in_update,
    normalized_in_update,
    reads_masks_alone,
    skip_first,
    teacher_certainty,
)
from onpolicy.losses.update_values import asked_for, reads_update
from onpolicy.types import LossInputs, TeacherScores, TermOutput


def inputs(entropy: Tensor, mask: Tensor | None = None, **changed: Any) -> LossInputs:
    zero = torch.zeros_like(entropy)
    mask = torch.ones_like(entropy, dtype=torch.bool) if mask is None else mask
    scores = TeacherScores(logprobs=changed.pop("teacher", zero), entropy=entropy, mask=mask)
    return LossInputs(
        **{
            "logprobs": zero, "entropy": entropy, "old_logprobs": zero, "rollout_logprobs": zero, "ref_logprobs": None,
            "advantages": zero, "sampled_mask": mask, "teacher": {"teacher": scores}, "divergences": {}, **changed,
        }
    )  # fmt: skip


def rows(whole: LossInputs, part: slice) -> LossInputs:
    scores = whole.teacher["teacher"]
    cut = {
        n: getattr(whole, n)[part]
        for n in ("logprobs", "entropy", "old_logprobs", "rollout_logprobs", "advantages", "sampled_mask")
    }
    teacher = TeacherScores(logprobs=scores.logprobs[part], entropy=scores.entropy[part], mask=scores.mask[part])
    return replace(whole, **cut, teacher={"teacher": teacher})


def term(weight: Any = None, normalize: str = "tokens", **parts: Any) -> Term:
    def function(given: LossInputs) -> TermOutput:
        assert given.tokens is not None
        return TermOutput(per_token=given.logprobs if weight is None else given.logprobs * weight(given, given.tokens))

    return Term("term", 1.0, function, TermSpec(), normalize=normalize, **parts)


def loss(one: Term, parts: Sequence[LossInputs], ranks: int = 1) -> float:
    """The update's loss, its micro-batches dealt out to ranks."""
    objective = Objective((one,))
    shards = [list(parts[rank::ranks]) for rank in range(ranks)]
    totals = surveyed(objective, shards)
    return sum(objective.loss(part, totals).item() for part in parts)


def surveyed(objective: Objective, shards: Sequence[Sequence[LossInputs]]) -> Totals:
    """What ranks in lockstep find, each of which gathers from all."""
    (one,) = objective.terms
    everything = [part for shard in shards for part in shard]
    if not one.reads_update:
        return objective.survey(everything)

    def gather_of(rank: int) -> Any:
        rounds = itertools.count(1)

        def gather(own: list[Tensor]) -> list[list[Tensor]]:
            number = next(rounds)
            return [
                own if other == rank else asked_in_round(one, shards, other, number) for other in range(len(shards))
            ]

        return gather

    answers = [asked_for(one.evaluate, shard, gather_of(rank)) for rank, shard in enumerate(shards)]
    for found in answers:
        assert all(torch.equal(a.sort().values, b.sort().values) for a, b in zip(found, answers[0], strict=True))
    counted = [int(one.denominator(replace(part, over_update=_Fixed(answers[0])))) for part in everything]
    return Totals({"term": sum(counted)}, {"term": answers[0]})


class _Fixed:
    """Answers in order."""

    def __init__(self, answers: Sequence[Tensor]) -> None:
        self.answers = iter(answers)

    def __call__(self, values: Tensor) -> Tensor:
        return next(self.answers)


def asked_in_round(one: Term, shards: Sequence[Sequence[LossInputs]], rank: int, number: int) -> list[Tensor]:
    """What another rank asks in a round, given the answers to all rounds before."""
    everything = [part for shard in shards for part in shard]
    before = list(asked_for(one.evaluate, everything, lambda own: [own]))[: number - 1]
    asked: list[Tensor] = []

    def stop(own: list[Tensor]) -> list[list[Tensor]]:
        asked.extend(own)
        return [[]]

    for part in shards[rank]:
        asked_for(
            lambda given: one.evaluate(replace(given, over_update=_Continued(before, given.over_update))), [part], stop
        )
    return asked


class _Continued:
    """Known answers first, then whoever answers next."""

    def __init__(self, known: Sequence[Tensor], then: Any) -> None:
        self.known, self.then = list(known), then

    def __call__(self, values: Tensor) -> Tensor:
        return self.known.pop(0) if self.known else self.then(values)


def test_select_takes_tokens_out_of_the_mean_by_hand() -> None:
    logprobs = torch.tensor([[1.0, 2.0, 4.0, 8.0], [10.0, 20.0, 0.0, 0.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    given = inputs(torch.zeros(2, 4), mask, logprobs=logprobs)
    skip = partial(skip_first, tokens=1)
    assert loss(term(skip), [given]) == pytest.approx((14 + 20) / 6), "as a weight: 0 in the mean"
    assert loss(term(select=skip), [given]) == pytest.approx((14 + 20) / 4), "selected: not in the mean"
    assert loss(term(select=skip, normalize="sequences"), [given]) == pytest.approx((14 / 3 + 20) / 2)
    assert loss(term(select=partial(skip_first, tokens=2), normalize="sequences"), [given]) == pytest.approx(6.0)
    assert loss(term(select=partial(skip_first, tokens=2), normalize="all_sequences"), [given]) == pytest.approx(3.0)
    assert loss(term(select=skip, normalize="all_tokens"), [given]) == pytest.approx((14 + 20) / 6)


def test_rows_of_no_length_leave_the_divisor_of_max_tokens() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    given = inputs(torch.zeros(2, 2), mask, logprobs=torch.ones(2, 2))
    assert loss(term(normalize="max_tokens", max_tokens=8), [given]) == pytest.approx(2 / 8)


def test_a_quantile_over_the_update_by_hand() -> None:
    """The two highest of five entropies stand in one row; by completion, each row would have one of its own."""
    given = inputs(torch.tensor([[0.1, 0.2, 0.3], [5.0, 6.0, 0.0]]), torch.tensor([[True] * 3, [True, True, False]]))
    # quantile .6 of (.1 .2 .3 5 6) with interpolation: place 2.4 -> .3 + .4 (5 - .3) = 2.18
    assert entropy_in_update(given, given.sampled_mask, share=0.4).tolist() == [[0, 0, 0], [1, 1, 0]]
    assert entropy(given, given.sampled_mask, share=0.4).sum(-1).tolist() == [2, 1]
    one = term(select=partial(entropy_in_update, share=0.4), reads_update=True)
    logprobs = torch.tensor([[1.0, 1.0, 1.0], [3.0, 5.0, 0.0]])
    parts = [rows(replace(given, logprobs=logprobs), slice(i, i + 1)) for i in range(2)]
    assert loss(one, parts) == loss(one, parts, ranks=2) == pytest.approx(4.0)


def test_weights_normalised_over_the_update_by_hand() -> None:
    """exp(-H) of 1 and 1/3 in one row, 1/9 in another: their mean is 13/27."""
    given = inputs(-torch.tensor([[1.0, 1 / 3], [1 / 9, 1.0]]).log(), torch.tensor([[True, True], [True, False]]))
    found = normalized_in_update(given, given.sampled_mask, token_weights=teacher_certainty)
    assert found[given.sampled_mask].tolist() == pytest.approx([27 / 13, 9 / 13, 3 / 13])


def test_whitening_by_hand() -> None:
    """R: (2 + 4) / 2, 4 | 1, and the padding's 0: mean 2, variance (1 + 4 + 1 + 4) / 3."""
    mask = torch.tensor([[True, True], [True, False]])
    given = inputs(torch.zeros(2, 2), mask, teacher=torch.tensor([[2.0, 4.0], [1.0, 0.0]]))
    expected = [(r - 2) / (10 / 3) ** 0.5 for r in (3, 4, 1)]
    assert whitened_logratio_to_go(given)[mask].tolist() == pytest.approx(expected)


SURVEYED = {
    "a quantile": term(select=partial(entropy_in_update, share=0.3), reads_update=True),
    "a quantile of a quantile's tokens": term(
        partial(normalized_in_update, token_weights=partial(entropy_in_update, share=0.6)),
        select=partial(entropy_in_update, share=0.5),
        reads_update=True,
        normalize="sequences",
    ),
    "a mean": term(partial(normalized_in_update, token_weights=teacher_certainty), reads_update=True),
    "whitening": term(lambda given, mask: whitened_logratio_to_go(given), reads_update=True),
}


@pytest.mark.parametrize("one", SURVEYED.values(), ids=SURVEYED)
@given(st.integers(0, 10_000), st.sets(st.integers(1, 5)), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_neither_micro_batches_nor_ranks_change_the_loss(one: Term, seed: int, cuts: set[int], ranks: int) -> None:
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(4) < torch.randint(1, 5, (6, 1), generator=random)
    draw = lambda: torch.where(mask, torch.rand(6, 4, generator=random, dtype=torch.float64), 0.0)  # noqa: E731
    whole = inputs(draw(), mask, logprobs=draw(), teacher=draw())
    parts = [rows(whole, slice(a, b)) for a, b in itertools.pairwise([0, *sorted(cuts), 6])]
    assert loss(one, parts, ranks) == pytest.approx(loss(one, [whole]), rel=1e-9, abs=1e-12)


def test_a_function_that_asks_twice() -> None:
    """The second question depends on the first answer."""

    @reads_update
    def above_the_mean(given: LossInputs) -> Tensor:
        mean = given.over_update(given.entropy.flatten()).mean()
        above = given.entropy[given.entropy > mean]
        return given.over_update(above).max().expand_as(given.entropy)

    parts = [inputs(torch.tensor([[1.0, 2.0]])), inputs(torch.tensor([[3.0, 10.0]]))]
    first, second = asked_for(above_the_mean, parts, lambda own: [own])
    assert first.tolist() == [1.0, 2.0, 3.0, 10.0] and second.tolist() == [10.0]


def test_what_needs_no_survey() -> None:
    assert reads_masks_alone(partial(skip_first, tokens=3)) and not reads_masks_alone(entropy)
    assert not Objective((term(select=partial(skip_first, tokens=3)),)).needs_survey
    assert Objective((term(select=entropy),)).needs_survey
    assert not Objective((term(select=entropy, normalize="all_sequences"),)).needs_survey


def test_two_means_over_changed_and_unchanged_tokens() -> None:
    """The contrast is far above, below and within the deadband: .5 tanh(.1 / .02) = .49995 is added where A stays positive."""
    teacher = TeacherScores(
        logprobs=torch.tensor([[0.1, -0.1, 1e-5]]), entropy=torch.zeros(1, 3), mask=torch.ones(1, 3, dtype=torch.bool)
    )
    contrast = replace(teacher, logprobs=torch.zeros(1, 3))
    given = replace(
        inputs(torch.zeros(1, 3), advantages=torch.ones(1, 3)), teacher={"teacher": teacher, "contrast": contrast}
    )
    changed = contrast_changes(given, given.sampled_mask, advantage=contrastive)
    assert changed.tolist() == [[1, 1, 0]]
    unchanged = contrast_changes(given, given.sampled_mask, advantage=contrastive, keep="unchanged")
    assert (changed + unchanged).tolist() == [[1, 1, 1]]
    without = replace(
        given, teacher={"teacher": teacher, "contrast": replace(contrast, mask=torch.zeros(1, 3, dtype=torch.bool))}
    )
    for keep in ("changed", "unchanged"):
        assert not contrast_changes(without, given.sampled_mask, advantage=contrastive, keep=keep).any(), (
            "no wrong hint"
        )
