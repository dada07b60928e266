"""Observed tokens, which an environment wrote, are context and nothing else.

1. at sampled tokens a rollout with observed tokens in its middle has the numbers that the model gives the whole sequence; 2. its loss and
gradient are those of the whole sequence with nothing but sampled tokens in every mask; 3. what is recorded about observed tokens
(log-probs, marks) changes nothing; 4. old log-probs and tokens are counted over sampled tokens alone; 5. token weights by position
count what the policy wrote; 6. a mask of another length is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from onpolicy.losses.objective import MetricAccumulator
from onpolicy.losses.terms.gspo import gspo
from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.losses.terms.ref_kl import ref_kl
from onpolicy.losses.token_weights import position, skip_first
from onpolicy.trainer.collate import collate
from onpolicy.trainer.head import HiddenStates
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.types import Example, LossInputs, TeacherScores
from tests.tiny import example, random_examples
from tests.trainer.test_trainer import distill_term, gradient, plain_term, trainer


def observing(examples: list[Example]) -> list[Example]:
    """Every second rollout has observed tokens in its middle; the first ends with one."""
    found = []
    for i, e in enumerate(examples):
        n = len(e.rollout.completion_ids)
        mask = tuple(not n // 3 < t <= 2 * n // 3 and not (i == 0 and t == n - 1) for t in range(n))
        found.append(replace(e, rollout=replace(e.rollout, sampled_mask=mask)) if i % 2 == 0 else e)
    return found


WHOLE = random_examples(6, seed=5)
EXAMPLES = observing(WHOLE)


def objective(**settings: Any) -> PolicyTrainer:
    terms = distill_term(), plain_term(policy_gradient), plain_term(gspo), plain_term(ref_kl, 0.1)
    return trainer(*terms, micro_batch_tokens=1000, **settings)


def masked_by_hand(inputs: LossInputs, mask: torch.Tensor) -> LossInputs:
    teacher = {
        n: TeacherScores(logprobs=s.logprobs, entropy=s.entropy, mask=s.mask & mask) for n, s in inputs.teacher.items()
    }
    return replace(inputs, sampled_mask=mask, teacher=teacher)


def test_the_examples_hold_what_they_should() -> None:
    masks = [e.rollout.sampled_mask for e in EXAMPLES]
    assert sum(bool(m) and not all(m) for m in masks) >= 3 and not all(masks)
    assert any(
        "teacher" in e.teacher_prompt_ids and e.rollout.num_sampled < len(e.rollout.completion_ids) for e in EXAMPLES
    )


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_sampled_tokens_have_the_losses_of_the_whole_sequence(layout: str) -> None:
    one, other = objective(layout=layout), objective(layout=layout)
    batch, whole = one.batching.batch(EXAMPLES), other.batching.batch(WHOLE)
    inputs, full = one.inputs(batch), other.inputs(whole)
    mask = batch.sampled_mask
    expected = masked_by_hand(full, mask)
    seen = [(inputs.logprobs, full.logprobs), (inputs.entropy, full.entropy), (inputs.ref_logprobs, full.ref_logprobs),
            (inputs.teacher["teacher"].logprobs, full.teacher["teacher"].logprobs),
            *zip(inputs.divergences.values(), full.divergences.values(), strict=True)]  # fmt: skip
    for found, reference in seen:
        assert found is not None and reference is not None
        torch.testing.assert_close(found[mask], reference[mask], atol=1e-6, rtol=1e-6)
        assert not found[~mask].any()
    for term in one.objective.terms:
        own = term.tokens(inputs)
        assert torch.equal(own, term.tokens(expected)) and not (own & ~mask).any()
        ours, theirs = term.function(inputs).per_token, term.function(expected).per_token
        torch.testing.assert_close(ours[own], theirs[own], atol=1e-6, rtol=1e-5)
    counts = one.objective.count([batch])
    losses = (
        one.objective.loss(inputs, counts, MetricAccumulator()),
        other.objective.loss(expected, counts, MetricAccumulator()),
    )
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    for (name, ours_), (_, theirs_) in zip(
        one.student.named_parameters(), other.student.named_parameters(), strict=True
    ):
        if theirs_.grad is not None:
            torch.testing.assert_close(ours_.grad, theirs_.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_no_gradient_flows_from_an_observed_token() -> None:
    """With gradients by token: a hidden state is read where its token was sampled, and nowhere else."""
    one = objective()
    kept: list[HiddenStates] = []

    def keep(states: HiddenStates) -> HiddenStates:
        kept.append(states)
        return states

    inputs = one.inputs(one.batching.batch(EXAMPLES), through=keep)
    assert len(kept[0].hidden) == sum(e.rollout.num_sampled for e in EXAMPLES) == int(inputs.sampled_mask.sum())
    (weight,) = torch.autograd.grad(
        one.objective.loss(inputs, one.objective.count([one.batching.batch(EXAMPLES)])), inputs.logprobs
    )
    assert weight[inputs.sampled_mask].any() and not weight[~inputs.sampled_mask].any()


def test_what_is_recorded_about_observed_tokens_changes_nothing() -> None:
    told = []
    for e in EXAMPLES:
        mask = e.rollout.sampled_mask or (True,) * len(e.rollout.completion_ids)
        logprobs = tuple(0.0 if sampled else -7.0 for sampled in mask)
        told.append(replace(e, rollout=replace(e.rollout, rollout_logprobs=logprobs)))
    reference, found = gradient(objective(), EXAMPLES), gradient(objective(), told)
    assert all(torch.equal(found[name], value) for name, value in reference.items())
    batch = collate(told, contexts=["teacher"])
    assert not batch.rollout_logprobs.any() and not batch.advantages[~batch.sampled_mask].any()


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_old_logprobs_are_those_of_sampled_tokens(layout: str) -> None:
    one = objective(layout=layout)
    for e, row, whole in zip(EXAMPLES, one.logprobs(EXAMPLES), one.logprobs(WHOLE), strict=True):
        assert len(row) == e.rollout.num_sampled
        expected = torch.tensor(e.rollout.select_sampled(whole.tolist()))
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-6)
    assert one.step(EXAMPLES)["train/loss"] == pytest.approx(
        objective(layout=layout, updates_per_step=1).step(EXAMPLES)["train/loss"]
    )


def test_places_count_what_the_policy_wrote() -> None:
    plain = objective().inputs(collate([example([5], [6, 7, 8, 9])], contexts=["teacher"]))
    seen = example([5], [6, 40, 41, 7, 8, 42, 9])
    rollout = replace(seen.rollout, sampled_mask=(True, False, False, True, True, False, True))
    inputs = objective().inputs(collate([replace(seen, rollout=rollout)], contexts=["teacher"]))
    for rule in (position, skip_first):
        found, expected = (rule(i, i.sampled_mask)[i.sampled_mask] for i in (inputs, plain))
        assert torch.equal(found, expected)


def test_a_mask_has_one_entry_a_token() -> None:
    rollout = example([5], [6, 7, 8]).rollout
    assert rollout.num_sampled == 3 and rollout.sampled_ids == (6, 7, 8)
    partly = replace(rollout, sampled_mask=(True, False, True), token_versions=(2, 0, 3), policy_version=2)
    assert partly.num_sampled == 2 and partly.sampled_ids == (6, 8)
    with pytest.raises(ValueError, match="3 completion tokens but 2 sampled_mask"):
        replace(rollout, sampled_mask=(True, False))
