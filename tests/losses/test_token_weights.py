"""Token weights: by hand, and their nulls.

1. position as published; 2. entropy and random keep the same number of tokens in each row; 3. shuffled keeps the values;
4. a row's weights do not depend on its neighbours or on padding; 5. distill and teacher_advantage use them; 6. clips.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from onpolicy.losses.comparison import Comparison
from onpolicy.losses.divergences import forward_kl
from onpolicy.losses.supports import full
from onpolicy.losses.targets import identity
from onpolicy.losses.terms.distill import distill
from onpolicy.losses.terms.teacher_advantage import teacher_advantage
from onpolicy.losses.token_weights import (
    entropy,
    entropy_matched,
    logratio_above,
    normalized,
    position,
    protect_markers,
    random,
    shuffled,
    skip_first,
    spans,
    teacher_certainty,
    teacher_entropy,
    teacher_logratio,
    uniform,
)
from onpolicy.types import REF, LossInputs, TeacherScores

MASK = torch.tensor([[True] * 10, [True] * 5 + [False] * 5])


def inputs(mask: torch.Tensor = MASK, **changes: Any) -> LossInputs:
    random_numbers = torch.Generator().manual_seed(0)
    draw = lambda: torch.where(mask, -torch.rand(mask.shape, generator=random_numbers), 0.0)  # noqa: E731
    teacher = TeacherScores(logprobs=draw(), entropy=-draw(), mask=mask)
    given = LossInputs(
        logprobs=draw(), entropy=-draw(), old_logprobs=draw(), rollout_logprobs=draw(), ref_logprobs=None, advantages=draw(),
        sampled_mask=mask, teacher={"teacher": teacher}, divergences={},
    )  # fmt: skip
    return replace(given, **changes)


def test_position_as_published() -> None:
    """The place of token t is that of its middle, (t + 1/2) / |y|."""
    weights = position(inputs(), MASK)
    length = int(MASK[0].sum())
    expected = [0.25 + 0.75 / (1 + math.exp(-((t + 0.5) / length - 0.3) / 0.1)) for t in range(length)]
    assert weights[0, :length].tolist() == pytest.approx(expected)
    other = int(MASK[1].sum())
    assert weights[1, 0].item() == pytest.approx(0.25 + 0.75 / (1 + math.exp(-(0.5 / other - 0.3) / 0.1))), (
        "each row by its own length"
    )


def test_entropy_and_its_null_keep_as_many_tokens() -> None:
    given = inputs()
    high, low, null = (
        entropy(given, MASK, share=0.3),
        entropy(given, MASK, share=0.3, keep="low"),
        random(given, MASK, share=0.3),
    )
    for weights in (high, low, null):
        assert weights.sum(-1).tolist() == [3.0, 2.0] and not weights[~MASK].any()
    assert given.entropy[0][high[0] > 0].min() >= given.entropy[0][high[0] == 0].max()
    assert not (high[0] * low[0]).any()
    assert not torch.equal(random(given, MASK, seed=1, share=0.3), null) and torch.equal(
        random(given, MASK, share=0.3), null
    )


def test_shuffled_keeps_the_values_of_each_row() -> None:
    given = inputs()
    plain, null = position(given, MASK), shuffled(given, MASK, token_weights=position)
    for row, n in ((0, 10), (1, 5)):
        torch.testing.assert_close(null[row, :n].sort().values, plain[row, :n].sort().values)
    assert not torch.equal(plain[0], null[0]) and not null[~MASK].any()


@pytest.mark.parametrize(
    "rule",
    [
        uniform,
        position,
        entropy,
        teacher_logratio,
        random,
        partial(shuffled, token_weights=position),
        partial(entropy, keep="not_high"),
        partial(entropy_matched, token_weights=position, strata=3),
        partial(normalized, token_weights=position),
        teacher_entropy,
        partial(normalized, token_weights=position, mean="geometric"),
        partial(logratio_above, threshold=0.1),
        teacher_certainty,
    ],
)
def test_a_rows_weights_depend_on_the_row_alone(rule: Any) -> None:
    given = inputs()
    taught = given.teacher["teacher"]
    alone = LossInputs(
        logprobs=given.logprobs[1:, :5], entropy=given.entropy[1:, :5], old_logprobs=given.old_logprobs[1:, :5],
        rollout_logprobs=given.rollout_logprobs[1:, :5], ref_logprobs=None, advantages=given.advantages[1:, :5],
        sampled_mask=MASK[1:, :5], divergences={},
        teacher={"teacher": TeacherScores(logprobs=taught.logprobs[1:, :5], entropy=taught.entropy[1:, :5], mask=MASK[1:, :5])},
    )  # fmt: skip
    torch.testing.assert_close(rule(given, MASK)[1:, :5], rule(alone, MASK[1:, :5]))


def test_the_high_share_and_the_rest_are_all_tokens_once() -> None:
    given = inputs()
    for share in (0.2, 0.25, 0.9):
        both = entropy(given, MASK, share=share) + entropy(given, MASK, share=share, keep="not_high")
        assert torch.equal(both[MASK], torch.ones(15))


def test_entropy_matched_keeps_the_mass_of_each_stratum() -> None:
    given = inputs()
    plain, null = entropy(given, MASK, share=0.3), entropy_matched(given, MASK, token_weights=position, strata=2)
    weights = position(given, MASK)
    ranks = given.entropy[0].argsort()
    for half in (ranks[:5], ranks[5:]):
        torch.testing.assert_close(null[0, half].sort().values, weights[0, half].sort().values)
    whole = entropy_matched(given, MASK, token_weights=partial(entropy, share=0.5), strata=2)
    assert torch.equal(whole[0], entropy(given, MASK, share=0.5)[0]), (
        "a rule on entropy itself is its own matched control"
    )
    assert plain.shape == null.shape and not null[~MASK].any()


def test_normalized_weights_redistribute() -> None:
    given = inputs()
    mean = normalized(given, MASK, token_weights=position)
    assert [mean[0].mean().item(), mean[1, :5].mean().item()] == pytest.approx([1.0, 1.0])
    geometric = normalized(given, MASK, token_weights=position, mean="geometric")
    assert [geometric[0].log().mean().item(), geometric[1, :5].log().mean().item()] == pytest.approx(
        [0.0, 0.0], abs=1e-6
    )


def test_thresholds_and_certainty_by_hand() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    scores = TeacherScores(
        logprobs=torch.tensor([[-1.0, -5.0, -2.0]]), entropy=torch.tensor([[0.5, 0.8, 2.0]]), mask=mask
    )
    given = inputs(mask, teacher={"teacher": scores}, old_logprobs=torch.tensor([[-1.0, -2.0, -3.0]]))
    assert logratio_above(given, mask, threshold=-2.558).tolist() == [[1.0, 0.0, 1.0]]
    assert teacher_entropy(given, mask, threshold=0.8).tolist() == [[0.0, 0.0, 1.0]]
    assert teacher_entropy(given, mask, threshold=0.8, keep="below").tolist() == [[1.0, 1.0, 0.0]]
    assert teacher_certainty(given, mask, scale=2.0)[0].tolist() == pytest.approx(
        [math.exp(-h / 2) for h in (0.5, 0.8, 2.0)]
    )


def test_opportunities_and_spans_by_hand() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    mass = torch.tensor([[0.0001, 0.025, 0.3]]).log()
    given = inputs(mask, marker_mass={(REF, "self_doubt"): mass}, spans={"key": torch.tensor([[True, False, True]])})
    assert protect_markers(given, mask, minimum=0.2, saturation=0.05)[0].tolist() == pytest.approx([0.9984, 0.6, 0.2])
    assert spans(given, mask, marked="key").tolist() == [[1.0, 0.0, 1.0]]
    assert spans(given, mask, marked="key", inside=0.5, outside=2.0).tolist() == [[0.5, 2.0, 0.5]]


def test_the_first_tokens_can_be_left_out() -> None:
    assert skip_first(inputs(), MASK, tokens=3)[1].tolist() == [0.0, 0.0, 0.0, *[1.0] * 7]


def test_gap_by_hand() -> None:
    given = inputs()
    u = given.teacher["teacher"].logprobs - given.logprobs
    torch.testing.assert_close(teacher_logratio(given, MASK, scale=0.5), 1 / (1 + (-u / 0.5).exp()))


def test_terms_use_weights_and_clips() -> None:
    comparison = Comparison("teacher", full, identity, forward_kl)
    distance = torch.full(MASK.shape, 0.3)
    given = inputs(divergences={comparison: distance})
    weighted = distill(given, divergence=forward_kl, token_weights=position, token_clip=0.1).per_token
    torch.testing.assert_close(weighted, 0.1 * position(given, MASK))
    plain = teacher_advantage(given).per_token
    torch.testing.assert_close(
        teacher_advantage(given, token_weights=position).per_token, plain * position(given, MASK)
    )


def test_entry_clip_by_hand_can_go_negative() -> None:
    student, teacher = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    first, second = 0.5 * math.log(0.5 / 0.9), 0.5 * math.log(0.5 / 0.1)
    assert forward_kl(student, teacher, entry_clip=0.05).item() == pytest.approx(first + 0.05, abs=1e-6)
    assert first + 0.05 < 0 < first + second
    assert forward_kl(student, teacher, entry_clip=9.0).item() == pytest.approx(first + second, abs=1e-6)


def test_entry_clip_leaves_the_gradient_of_the_other_entries() -> None:
    """The teacher's choice contributes .9 log(.9 / .5) = .53 and is clipped. The gradient of the logits is M p_S - p_T on the others, whose
    teacher mass M is .1: (.05, .03 - .08, .02 - .02), so descent lowers the choice. Without the clip it is p_S - p_T.
    """
    teacher = torch.tensor([0.9, 0.08, 0.02]).log()
    for clip, expected in ((0.05, [0.05, -0.05, 0.0]), (None, [-0.4, 0.22, 0.18])):
        logits = torch.tensor([0.5, 0.3, 0.2]).log().requires_grad_()
        forward_kl(logits.log_softmax(-1), teacher, entry_clip=clip).backward()
        assert logits.grad is not None and logits.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        entropy(inputs(), MASK, share=0.0)
