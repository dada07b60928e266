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

from onpolicy.distill.compare import Comparison
from onpolicy.distill.divergence import forward_kl
from onpolicy.distill.support import full
from onpolicy.distill.target import identity
from onpolicy.distill.token_weight import entropy, gap, position, random, shuffled, skip_first, uniform
from onpolicy.objectives.distill import distill
from onpolicy.objectives.teacher_advantage import teacher_advantage
from onpolicy.types import LossInputs, TeacherScores

MASK = torch.tensor([[True] * 10, [True] * 5 + [False] * 5])


def inputs(mask: torch.Tensor = MASK, **changes: Any) -> LossInputs:
    random_numbers = torch.Generator().manual_seed(0)
    draw = lambda: torch.where(mask, -torch.rand(mask.shape, generator=random_numbers), 0.0)  # noqa: E731
    teacher = TeacherScores(logprobs=draw(), entropy=-draw(), mask=mask)
    given = LossInputs(
        logprobs=draw(), entropy=-draw(), old_logprobs=draw(), rollout_logprobs=draw(), ref_logprobs=None, advantages=draw(),
        response_mask=mask, teacher={"teacher": teacher}, divergences={},
    )  # fmt: skip
    return replace(given, **changes)


def test_position_as_published() -> None:
    weights = position(inputs(), MASK)
    assert weights[0, [0, 3, 5]].tolist() == pytest.approx([0.2856, 0.625, 0.9106], abs=1e-3)
    assert weights[1, 0] == weights[0, 0] and weights[1, 1].item() == pytest.approx(weights[0, 2].item()), (
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


@pytest.mark.parametrize("rule", [uniform, position, entropy, gap, random, partial(shuffled, token_weights=position)])
def test_a_rows_weights_depend_on_the_row_alone(rule: Any) -> None:
    given = inputs()
    taught = given.teacher["teacher"]
    alone = LossInputs(
        logprobs=given.logprobs[1:, :5], entropy=given.entropy[1:, :5], old_logprobs=given.old_logprobs[1:, :5],
        rollout_logprobs=given.rollout_logprobs[1:, :5], ref_logprobs=None, advantages=given.advantages[1:, :5],
        response_mask=MASK[1:, :5], divergences={},
        teacher={"teacher": TeacherScores(logprobs=taught.logprobs[1:, :5], entropy=taught.entropy[1:, :5], mask=MASK[1:, :5])},
    )  # fmt: skip
    torch.testing.assert_close(rule(given, MASK)[1:, :5], rule(alone, MASK[1:, :5]))


def test_the_first_tokens_can_be_left_out() -> None:
    assert skip_first(inputs(), MASK, tokens=3)[1].tolist() == [0.0, 0.0, 0.0, *[1.0] * 7]


def test_gap_by_hand() -> None:
    given = inputs()
    u = given.teacher["teacher"].logprobs - given.logprobs
    torch.testing.assert_close(gap(given, MASK, scale=0.5), 1 / (1 + (-u / 0.5).exp()))


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


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(ValueError, match="share"):
        entropy(inputs(), MASK, share=0.0)
