"""Losses on the student's own unlikely tokens.

1. which tokens, and which advantages, by hand; 2. the loss and gradient of the config `opsa` are equation 5 of arXiv 2608.31046,
written out slowly in float64; 3. a row's numbers depend on the row alone; 4. no reward is needed for a signal.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from onpolicy.losses.tail_tokens import tail_suppression, unlikely
from onpolicy.run.api import build_objective
from onpolicy.types import LossInputs

FILLED = ["model.path=m", "data.path=d"]


def inputs(logprobs: Tensor, entropy: Tensor, mask: Tensor | None = None) -> LossInputs:
    """A student before its first update, without a teacher and without a reward."""
    old = logprobs.detach()
    return LossInputs(
        logprobs=logprobs, entropy=entropy.detach(), old_logprobs=old, rollout_logprobs=old, ref_logprobs=None,
        advantages=torch.zeros_like(old), sampled_mask=torch.ones_like(old, dtype=torch.bool) if mask is None else mask,
        teacher={}, divergences={},
    )  # fmt: skip


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def chosen(logprobs: Tensor, share: float, mask: Tensor | None = None) -> list[int]:
    given = inputs(logprobs, torch.zeros_like(logprobs), mask)
    return unlikely(given, given.sampled_mask, share=share)[0].nonzero()[:, 0].tolist()


def test_the_least_likely_tokens_by_hand() -> None:
    ten = row(-1.0, -0.1, -5.0, -0.2, -0.3, -2.0, -3.0, -0.4, -0.5, -0.6)
    assert chosen(ten, 0.2) == [2, 6] and chosen(ten, 0.3) == [2, 5, 6] and chosen(ten, 1.0) == list(range(10))
    assert chosen(ten[:, :9], 0.2) == [2], "1.8 tokens are one"
    assert chosen(row(-1.0, -2.0), 0.2) == [1], "at least one"
    assert chosen(row(-1.0, -1.0, -1.0), 0.4) == [0], "of equal ones the first"
    padded = torch.tensor([[True] * 3 + [False] * 7])
    assert chosen(torch.where(padded, ten, 0.0), 0.4, padded) == [2], "padding is neither counted nor chosen"


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_that_selects_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"must lie above 0 and at most at 1, got"):
        chosen(row(-1.0, -2.0), share)


def test_advantages_by_hand() -> None:
    logprobs = row(-9.0, -0.1, -8.0, -7.0, -0.2, -0.3)
    entropy = row(2.0, 9.0, 0.5, 1.0, 9.0, 0.0)
    # entropies of the chosen three: 2, .5 and 1; their range is 1.5
    expected = [-1.0, 0.0, -0.5, -0.5 - 0.5 * (0.5 / 1.5), 0.0, 0.0]
    assert tail_suppression(inputs(logprobs, entropy), share=0.5)[0].tolist() == pytest.approx(expected)
    fixed = tail_suppression(inputs(logprobs, entropy), share=0.5, weakest=-0.5, strongest=-0.5)
    assert fixed[0].tolist() == [-0.5, 0.0, -0.5, -0.5, 0.0, 0.0], "section 3.2: one fixed negative advantage"
    equal = tail_suppression(inputs(logprobs, torch.ones(1, 6)), share=0.5)
    assert equal[0].tolist() == [-1.0, 0.0, -1.0, -1.0, 0.0, 0.0], "equal entropies: the strongest"
    assert tail_suppression(inputs(row(-1.0, -2.0), row(0.3, 0.4)))[0].tolist() == [0.0, -1.0], "one token alone"


def equation_5(logits: list[list[list[float]]], tokens: list[list[int]], fixed: list[list[float]] | None = None) -> Any:
    """The mean over rollouts of -1 / |S| sum_S A_i log pi(y_i), in plain Python; A from these logits, or given."""
    advantages, total = [], 0.0
    for r, (positions, sampled) in enumerate(zip(logits, tokens, strict=True)):
        logs = [[z - math.log(sum(math.exp(x) for x in position)) for z in position] for position in positions]
        said = [position[y] for position, y in zip(logs, sampled, strict=True)]
        lowest = sorted(range(len(said)), key=lambda i: said[i])[: max(1, int(0.2 * len(said)))]
        entropy = {i: -sum(math.exp(x) * x for x in logs[i]) for i in lowest}
        low, high = min(entropy.values()), max(entropy.values())
        own = [0.0] * len(said)
        for i in lowest:
            own[i] = -0.5 - (entropy[i] - low) / (2 * (high - low))
        advantages.append(own)
        used = own if fixed is None else fixed[r]
        total -= sum(a * x for a, x in zip(used, said, strict=True)) / len(lowest)
    return total / len(logits), advantages


def test_the_configs_gradient_is_equation_5() -> None:
    random = torch.Generator().manual_seed(0)
    lengths, vocabulary = (15, 10), 4  # multiples of 5: a fifth of them is a whole number
    logits = [2 * torch.randn(n, vocabulary, generator=random, dtype=torch.float64) for n in lengths]
    tokens = [torch.randint(0, vocabulary, (n,), generator=random) for n in lengths]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    leaf = torch.nn.utils.rnn.pad_sequence(logits, batch_first=True).requires_grad_()
    logprobs = leaf.log_softmax(-1)
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    said = torch.where(mask, logprobs.gather(-1, ids[..., None])[..., 0], 0.0)
    entropy = torch.where(mask, -(logprobs.exp() * logprobs).sum(-1), 0.0)
    objective = build_objective("opsa", FILLED)
    given = inputs(said, entropy, mask)
    assert not objective.needs_survey
    loss = objective.loss(given, objective.survey([given]))
    (gradient,) = torch.autograd.grad(loss, leaf)

    plain = [(x.tolist(), y.tolist()) for x, y in zip(logits, tokens, strict=True)]
    whole, sampled = [x for x, _ in plain], [y for _, y in plain]
    _, advantages = equation_5(whole, sampled)
    for r, n in enumerate(lengths):
        for t in range(n):
            for v in range(vocabulary):
                sides = []
                for step in (1e-5, -1e-5):
                    whole[r][t][v] += step
                    sides.append(equation_5(whole, sampled, advantages)[0])
                    whole[r][t][v] -= step
                assert gradient[r, t, v].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-8)
    assert not gradient[1, 10:].any() and gradient.any()


@pytest.mark.parametrize("rule", [partial(unlikely, share=0.4), lambda given, mask: tail_suppression(given, share=0.4)])
def test_a_rows_numbers_depend_on_the_row_alone(rule: Any) -> None:
    random = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True] * 10, [True] * 5 + [False] * 5])
    logprobs, entropy = (torch.where(mask, s * torch.rand(2, 10, generator=random), 0.0) for s in (-1.0, 1.0))
    both, alone = inputs(logprobs, entropy, mask), inputs(logprobs[1:, :5], entropy[1:, :5], mask[1:, :5])
    assert torch.equal(rule(both, mask)[1:, :5], rule(alone, mask[1:, :5]))
    assert rule(both, mask)[1, :5].any() and not rule(both, mask)[~mask].any()


def test_an_advantage_without_a_reward_is_a_signal() -> None:
    (ours,), (rewarded, *_) = build_objective("opsa", FILLED).terms, build_objective("grpo", FILLED).terms
    assert ours.spec.unrewarded and not rewarded.spec.unrewarded
