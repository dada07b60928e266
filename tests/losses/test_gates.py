"""Gates, and the configs that use them.

1. both gates by hand; 2. the loss and gradient of the config `sdpg` are those of its published formula, written out slowly in
float64: clipped reward term, gated reverse KL over the vocabulary with its cut at 20, schedule, KL to the reference model, one mean
over all tokens; 3. the advantage of the config `egrsd` by hand.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from onpolicy.config.resolve import load_resolved
from onpolicy.config.schedules import Coefficients
from onpolicy.config.shipped import find_config
from onpolicy.losses.comparison import Distributions
from onpolicy.losses.gates import positive_advantage, teacher_entropy_gate
from onpolicy.trainer.build import build_objective
from onpolicy.types import LossInputs, TeacherScores

FILLED = ["model.path=m", "data.path=d"]


def inputs(entropy: Tensor, mask: Tensor | None = None, advantages: Tensor | None = None) -> LossInputs:
    """The teacher's entropy and the group's advantages; every log-probability is 0."""
    zero = torch.zeros_like(entropy)
    mask = torch.ones_like(entropy, dtype=torch.bool) if mask is None else mask
    return LossInputs(
        logprobs=zero, entropy=zero, old_logprobs=zero, rollout_logprobs=zero, ref_logprobs=None,
        advantages=zero if advantages is None else advantages, sampled_mask=mask, divergences={},
        teacher={"teacher": TeacherScores(logprobs=zero, entropy=entropy, mask=mask)},
    )  # fmt: skip


def test_rollouts_better_than_their_group() -> None:
    given = inputs(torch.zeros(3, 2), advantages=torch.tensor([[0.5, 0.5], [0.0, 0.0], [-0.5, -0.5]]))
    assert positive_advantage(given, given.sampled_mask).tolist() == [[1, 1], [0, 0], [0, 0]]


def test_the_entropy_gate_by_hand() -> None:
    entropy = torch.tensor([[0.0, math.log(2.0), 50.0, math.log(4.0)]])
    given = inputs(entropy)
    found = teacher_entropy_gate(given, given.sampled_mask, minimum=0.2)
    assert found[0].tolist() == pytest.approx([1.0, 0.2 + 0.8 / 2, 0.2, 0.2 + 0.8 / 4])
    scaled = teacher_entropy_gate(given, given.sampled_mask, minimum=0.0, scale=2.0)
    assert scaled[0].tolist() == pytest.approx([1.0, 2**-0.5, math.exp(-25.0), 0.5])
    # one token ahead: 50 nats are followed by log 4, and the last token by nothing
    ahead = partial(teacher_entropy_gate, minimum=0.2, lookahead=1)
    assert ahead(given, given.sampled_mask)[0].tolist() == pytest.approx([1.0, 0.6, 0.4, 0.4])
    mask = torch.tensor([[True, True, True, False]])
    padded = ahead(inputs(torch.where(mask, entropy, 0.0), mask), mask)[0, :3].tolist()
    assert padded == pytest.approx([1.0, 0.6, 0.2]), "padding, whose entropy reads 0, resolves nothing"


LENGTHS, VOCABULARY, STEP = (3, 2, 2), 5, 340
ADVANTAGES = (0.7, -1.1, 0.0)


def published_sdpg(
    student: list[list[list[float]]], teacher: list[list[list[float]]], old: list[list[float]], ref: list[list[float]],
    tokens: list[list[int]],
) -> float:  # fmt: skip
    """Log-probabilities in, one number out: mean over all tokens of
    reward term + beta 1[A > 0] min(sum_v p (log p - log q), 20) + alpha (ref / p + log(p / ref))."""
    beta = 1e-3 * min(1.0, STEP / 50) * min(1.0, (400 - STEP) / 100)
    losses = []
    for r, n in enumerate(LENGTHS):
        for t in range(n):
            p, q, said = student[r][t], teacher[r][t], student[r][t][tokens[r][t]]
            ratio, a = math.exp(said - old[r][t]), ADVANTAGES[r]
            loss = max(-a * ratio, -a * min(max(ratio, 0.8), 1.28))
            loss = min(loss, -10 * a) if a < 0 else loss
            if a > 0:
                loss += beta * min(sum(math.exp(x) * (x - y) for x, y in zip(p, q, strict=True)), 20.0)
            losses.append(loss + 1e-3 * (math.exp(ref[r][t] - said) + said - ref[r][t]))
    return sum(losses) / len(losses)


def normalised(logits: list[list[list[float]]]) -> list[list[list[float]]]:
    return [[[z - math.log(sum(map(math.exp, p))) for z in p] for p in positions] for positions in logits]


def test_the_config_sdpg_is_its_published_formula() -> None:
    random = torch.Generator().manual_seed(3)
    shape = (len(LENGTHS), max(LENGTHS), VOCABULARY)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    leaf = torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(shape, generator=random, dtype=torch.float64)
    teacher[0, 1] = torch.tensor([-90.0, -90.0, -90.0, -90.0, 0.0])  # a token whose KL is over 20 and cut
    ids = torch.randint(0, VOCABULARY, shape[:2], generator=random)
    logprobs, said_by_teacher = leaf.log_softmax(-1), teacher.log_softmax(-1)
    pick = lambda x: torch.where(mask, x.gather(-1, ids[..., None])[..., 0], 0.0)  # noqa: E731
    said = pick(logprobs)
    old = torch.where(mask, said.detach() + 0.4 * torch.randn(shape[:2], generator=random, dtype=torch.float64), 0.0)
    old[1, 0] = said[1, 0].detach() - 3.0  # a ratio of 20 under a negative advantage: the dual clip
    ref = torch.where(mask, said.detach() + torch.randn(shape[:2], generator=random, dtype=torch.float64), 0.0)

    resolved = load_resolved(find_config("sdpg"), FILLED)
    objective = build_objective(resolved)
    Coefficients(resolved.coefficients).set(STEP, {})
    seen = Distributions(
        student=logprobs.detach(), teachers={"teacher": said_by_teacher}, ref=None, token_ids=ids, marker_ids={}
    )
    given = LossInputs(
        logprobs=said, entropy=torch.zeros_like(old), old_logprobs=old, rollout_logprobs=old - 1.0, ref_logprobs=ref,
        advantages=torch.tensor(ADVANTAGES, dtype=torch.float64)[:, None] * mask, sampled_mask=mask,
        teacher={"teacher": TeacherScores(logprobs=pick(said_by_teacher), entropy=torch.zeros_like(old), mask=mask)},
        divergences={c: torch.where(mask, c.compare(logprobs, seen), 0.0) for c in objective.comparisons},
    )  # fmt: skip
    loss = objective.loss(given, objective.survey([given]))
    (gradient,) = torch.autograd.grad(loss, leaf)

    logits, fixed = leaf.tolist(), (said_by_teacher.tolist(), old.tolist(), ref.tolist(), ids.tolist())
    # the estimator of the reference KL leaves out the constant 1
    assert loss.item() == pytest.approx(published_sdpg(normalised(logits), *fixed) - 1e-3, abs=1e-12)
    for r, t, v in ((r, t, v) for r, n in enumerate(LENGTHS) for t in range(n) for v in range(VOCABULARY)):
        sides = []
        for step in (1e-5, -1e-5):
            logits[r][t][v] += step
            sides.append(published_sdpg(normalised(logits), *fixed))
            logits[r][t][v] -= step
        assert gradient[r, t, v].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-8)


def test_egrsds_three_factors_by_hand() -> None:
    """Direction A, size clip(exp(sign(A) u), .8, 1.2), confidence .1 + .9 exp(-H)."""
    given = inputs(
        torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]]), advantages=torch.tensor([[2.0] * 2, [-1.0] * 2])
    )
    scores = replace(given.teacher["teacher"], logprobs=torch.tensor([[0.1, -5.0], [0.1, -5.0]]))
    objective = build_objective(load_resolved(find_config("egrsd"), FILLED))
    (term,) = objective.terms
    found = term.function(replace(given, teacher={"teacher": scores})).per_token
    assert found.flatten().tolist() == pytest.approx(
        [-2 * math.exp(0.1), -2 * 0.8 * (0.1 + 0.9 / 3), math.exp(-0.1), 1.2 * (0.1 + 0.9 / 3)]
    )
