"""Token advantages that use the teacher: ``(inputs) -> [B, T]``, without gradient.

All read u_t = log teacher(y_t) - log old student(y_t), which is positive where the teacher finds the token likelier than the
student does. For a rollout without a context, functions that modify the group's advantage A return A, and functions that
replace it return 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from onpolicy.losses.comparison import reads_ref
from onpolicy.losses.token_weights import permuted
from onpolicy.losses.update_values import reads_update
from onpolicy.types import STUDENT, LossInputs

Advantage = Callable[[LossInputs], Tensor]


def group(inputs: LossInputs) -> Tensor:
    """A_t = A, from `credit`."""
    return inputs.advantages


def teacher_logratio(
    inputs: LossInputs,
    *,
    floor: float | None = None,
    clip: float | None = None,
    against: Literal["old", "sampler"] = "old",
    context: str = "teacher",
) -> Tensor:
    """A_t = u_t: the teacher's log-ratio replaces the reward (Thinking Machines, On-Policy Distillation, 2025).

    REOPOLD (arXiv 2603.11137) floors it at log(l) / (1 - l), l = .1: -2.558.

    Args:
        floor: lower bound of u_t, nats; null: none
        clip: upper bound of |u_t|, nats; null: none
        against: the policy that the teacher is compared with: `old`, the trainer's at the start of the step, or `sampler`, with the
            generator's own log-probabilities (tinker-cookbook)
        context: the context that the teacher reads
    """
    behaviour = inputs.old_logprobs if against == "old" else inputs.rollout_logprobs
    replaced = inputs.teacher[context].logprobs - behaviour
    replaced = replaced if floor is None else replaced.clamp(min=floor)
    replaced = replaced if clip is None else replaced.clamp(-clip, clip)
    return torch.where(inputs.teacher[context].mask, replaced, 0.0)


def future_logratio(inputs: LossInputs, *, context: str = "teacher") -> Tensor:
    """A_t = (sum of u over the tokens after t) / (number of them): the long-term part of MiniLLM's gradient.

    MiniLLM (arXiv 2306.08543, section 2.2) with its single-step decomposition and length normalisation. The single-step part
    is the exact reverse KL at t: the term `distill` with `reverse_kl`.

    Args:
        context: the context that the teacher reads
    """
    mask = inputs.teacher[context].mask
    gaps = torch.where(mask, _gap(inputs, context), 0.0)
    later = gaps.flip(-1).cumsum(-1).flip(-1) - gaps
    remaining = mask.int().flip(-1).cumsum(-1).flip(-1) - 1
    return torch.where(mask & (remaining > 0), later / remaining.clamp(min=1), 0.0)


@reads_update
def whitened_logratio_to_go(inputs: LossInputs, *, context: str = "teacher") -> Tensor:
    """A_t = (R_t - mean) / sqrt(var + 1e-8), R_t = (sum of u from t on) / (number of those tokens): MiniLLM as its code computes it.

    Its code (LMOps) differs from the paper (`future_logratio`) in three ways: the token's own u counts, R is whitened over the
    batch, and mean and variance (over n - 1) are taken over rows x longest completion, where padding counts as 0. Its factor of 2
    on the rewards has no effect, since it is divided out.

    Args:
        context: the context that the teacher reads
    """
    mask = inputs.teacher[context].mask
    gaps = torch.where(mask, _gap(inputs, context), 0.0)
    remaining = mask.int().flip(-1).cumsum(-1).flip(-1)
    returns = gaps.flip(-1).cumsum(-1).flip(-1) / remaining.clamp(min=1)
    found = inputs.over_update(returns[mask])
    lengths = inputs.over_update(mask.sum(-1).to(returns.dtype))
    size = (len(lengths) * lengths.max()).clamp(min=2)
    mean = found.sum() / size
    variance = ((found - mean).square().sum() + (size - len(found)) * mean.square()) / (size - 1)
    return torch.where(mask, (returns - mean) / (variance + 1e-8).sqrt(), 0.0)


def add(inputs: LossInputs, *, coefficient: float = 0.1, context: str = "teacher") -> Tensor:
    """A_t = A + coefficient u_t: reward and reverse KL in one advantage.

    Args:
        coefficient: factor of u_t, per nat
        context: the context that the teacher reads
    """
    return _where_in_context(inputs, context, inputs.advantages + coefficient * _gap(inputs, context))


def add_keeping_sign(inputs: LossInputs, *, coefficient: float = 0.1, context: str = "teacher") -> Tensor:
    """A_t = A + coefficient u_t, but 0 where the sum would change sign: the teacher changes the size of an advantage, not its sign.

    Args:
        coefficient: factor of u_t, per nat
        context: the context that the teacher reads
    """
    return _where_in_context(inputs, context, _keeping_sign(inputs.advantages, coefficient * _gap(inputs, context)))


def multiply(inputs: LossInputs, *, share: float = 0.5, clip: float = 0.2, context: str = "teacher") -> Tensor:
    """A_t = A ((1 - share) + share w_t), w_t = clip(exp(sign(A) d_t), 1 - clip, 1 + clip), d_t = log teacher - log student.

    RLSD (arXiv 2604.03128): the reward gives the sign, and the teacher gives each token's magnitude. d_t is the gap to the
    *current* student, as in its code, not to the one at the start of the step.

    Args:
        share: weight of w_t in the average with 1, 0 to 1
        clip: w_t stays within 1 - clip and 1 + clip
        context: the context that the teacher reads
    """
    advantages = inputs.advantages
    gap = inputs.teacher[context].logprobs - inputs.logprobs.detach()
    weight = (advantages.sign() * gap).exp().clamp(1.0 - clip, 1.0 + clip)
    return _where_in_context(inputs, context, advantages * ((1.0 - share) + share * weight))


def inverse_teacher(inputs: LossInputs, *, share: float = 1.0, clip: float = 0.2, context: str = "teacher") -> Tensor:
    """Where A > 0: A_t = A ((1 - share) + share w_t), w_t = clip(exp(-u_t), 1 - clip, 1 + clip); elsewhere A_t = A.

    RLRT (arXiv 2605.10781): in a correct answer, tokens that are *un*likely under the informed teacher count more. Its gate on
    reward is the sign of A here: in a group of equal rewards A is 0 anyway.

    Args:
        share: weight of w_t in the average with 1, 0 to 1
        clip: w_t stays within 1 - clip and 1 + clip
        context: the context that the teacher reads
    """
    advantages = inputs.advantages
    weight = (-_gap(inputs, context)).exp().clamp(1.0 - clip, 1.0 + clip)
    changed = advantages * ((1.0 - share) + share * weight)
    return _where_in_context(inputs, context, torch.where(advantages > 0, changed, advantages))


def contrastive(
    inputs: LossInputs,
    *,
    coefficient: float = 0.5,
    temperature: float = 0.02,
    bound: float = 2.0,
    deadband: float = 0.02,
    context: str = "teacher",
    contrast_contexts: list[str] = ["contrast"],  # noqa: B006 read, never changed
) -> Tensor:
    """A_t = A + r_t, but 0 where the sum would change sign; r_t = clip(coefficient tanh(e_t / temperature), -bound, bound).

    RLCSD (arXiv 2606.11709): e_t = log q(y_t) - log mean_k q_k(y_t), with q the teacher that reads a correct sibling and
    q_k those that read wrong ones, so that the effect of *any* hint on style cancels. r_t within the deadband counts as 0.

    Args:
        coefficient: largest change of an advantage
        temperature: nats over which the change grows
        bound: largest absolute value of r_t
        deadband: changes up to this are set to 0
        context: the context with the correct hint
        contrast_contexts: the contexts with wrong hints; a rollout needs at least one of them
    """
    present = torch.stack([inputs.teacher[v].mask for v in contrast_contexts])
    wrong = torch.stack([inputs.teacher[v].logprobs for v in contrast_contexts]).masked_fill(~present, -torch.inf)
    count = present.sum(0)
    mean = torch.where(count > 0, wrong.logsumexp(0) - count.clamp(min=1).to(wrong.dtype).log(), 0.0)
    change = (coefficient * torch.tanh((inputs.teacher[context].logprobs - mean) / temperature)).clamp(-bound, bound)
    change = torch.where((change.abs() > deadband) & (count > 0), change, 0.0)
    return _where_in_context(inputs, context, _keeping_sign(inputs.advantages, change))


def contrast_changes(
    inputs: LossInputs,
    mask: Tensor,
    *,
    advantage: Advantage,
    keep: Literal["changed", "unchanged"] = "changed",
    context: str = "teacher",
    contrast_contexts: list[str] = ["contrast"],  # noqa: B006 read, never changed
) -> Tensor:
    """Token weights: 1 where an advantage function changes the group's advantage, or where it does not; 0 elsewhere, and on all of a
    rollout that lacks the correct hint or every wrong one.

    Two terms that `select` by it are two means over the two sets of tokens (RLCSD's code, arXiv 2606.11709).

    Args:
        advantage: the function
        keep: the tokens that get 1: `changed` or `unchanged`
        context: the context with the correct hint
        contrast_contexts: the contexts with wrong hints; a rollout needs at least one of them
    """
    hinted = inputs.teacher[context].mask & torch.stack([inputs.teacher[c].mask for c in contrast_contexts]).any(0)
    changed = advantage(inputs) != inputs.advantages
    return ((changed if keep == "changed" else ~changed) & hinted).to(inputs.entropy.dtype)


def bounded_reversal(inputs: LossInputs, *, coefficient: float = 1.0, context: str = "teacher") -> Tensor:
    """A_t = A - coefficient phi(u_t), phi(u) = (softplus(u) - ln 2) / 2: a bounded push away from the teacher.

    AntiSD (arXiv 2605.11609): a token that is impossible under the teacher gains at most coefficient (ln 2) / 2; one that is
    much likelier under the teacher loses in proportion to u. Its entropy gate is the schedule `schmitt_gate` on the coefficient.

    Args:
        coefficient: strength
        context: the context that the teacher reads
    """
    phi = 0.5 * (torch.nn.functional.softplus(_gap(inputs, context)) - math.log(2.0))
    return _where_in_context(inputs, context, inputs.advantages - coefficient * phi)


def entropy_directed(
    inputs: LossInputs, *, coefficient: float = 0.1, share: float = 0.2, context: str = "teacher"
) -> Tensor:
    """A_t = A + coefficient omega_t d_t, omega_t = tanh((h - H_t) / s) sigmoid(|d_t| - 1): towards the teacher where the student
    is certain, away from it where it is not.

    DASD (arXiv 2605.22263): d_t is u_t over its root mean square in the rollout, h the entropy that the given fraction of
    the rollout's tokens exceed, s the mean absolute deviation of its entropies.

    Args:
        coefficient: strength
        share: fraction of a rollout's tokens that move away from the teacher, 0 to 1
        context: the context that the teacher reads
    """
    mask = inputs.teacher[context].mask
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    mean = lambda values: torch.where(mask, values, 0.0).sum(-1, keepdim=True) / count  # noqa: E731
    gaps, entropy = _gap(inputs, context), inputs.entropy
    tiny = torch.finfo(entropy.dtype).tiny
    scaled = gaps / mean(gaps.square()).sqrt().clamp(min=tiny)
    threshold = entropy.masked_fill(~mask, torch.nan).nanquantile(1.0 - share, dim=-1, keepdim=True).nan_to_num()
    direction = torch.tanh((threshold - entropy) / mean((entropy - mean(entropy)).abs()).clamp(min=tiny))
    changed = inputs.advantages + coefficient * direction * torch.sigmoid(scaled.abs() - 1.0) * scaled
    return _where_in_context(inputs, context, changed)


def on_markers(
    inputs: LossInputs,
    *,
    advantage: Advantage,
    lexicon: str = "self_doubt",
    opportunity: float = 0.01,
    control: Literal["none", "others", "any", "like_entropy"] = "none",
    seed: int = 0,
) -> Tensor:
    """Another function's advantage at markers and at positions where one was likely, the group's advantage elsewhere.

    With `bounded_reversal` and its controls it tests whether reversal works *because* of the markers.

    Args:
        advantage: the other function
        lexicon: the lexicon of the markers
        opportunity: student's probability of all markers together from which a position counts as one where a marker was likely
        control: applies it elsewhere: `others`, all other tokens; `any`, the same number of random tokens of each answer;
            `like_entropy`, the same among tokens of similar entropy
        seed: for the random controls
    """
    mask = inputs.sampled_mask
    chosen = inputs.spans[f"<{lexicon}>"] & mask
    if (STUDENT, lexicon) in inputs.marker_mass:
        chosen = chosen | ((inputs.marker_mass[STUDENT, lexicon].exp() >= opportunity) & mask)
    if control == "others":
        chosen = mask & ~chosen
    elif control in ("any", "like_entropy"):
        strata = 10 if control == "like_entropy" else 1
        chosen = permuted(inputs, chosen.to(inputs.entropy.dtype), mask, strata=strata, seed=seed) > 0
    return torch.where(chosen, advantage(inputs), inputs.advantages)


@reads_ref
def hedging_bonus(
    inputs: LossInputs,
    *,
    coefficient: float = 0.1,
    bound: float = 2.0,
    fork: float = 0.7,
    total: float = 1.0,
    lexicon: str = "self_doubt",
    context: str = "teacher",
    control: Literal["none", "any", "like_entropy"] = "none",
    seed: int = 0,
) -> Tensor:
    """Where A > 0: A_t = A + b_t, b_t = coefficient min(bound, max(0, -u_t)) at markers where the reference model's entropy is high.

    Rewards only markers that are unlikely under the informed teacher, at a position of high entropy, in an answer that scored
    better than its siblings: a correct one unless bonuses change that (then give the term `route: correct`). The bonuses of
    one answer are scaled down if their sum exceeds `total`. Not from a paper.

    Args:
        coefficient: bonus per nat; below 0 a penalty
        bound: largest -u_t that counts, nats
        fork: entropy of the reference model from which a position counts, nats
        total: largest sum of bonuses, or of penalties, in one answer
        lexicon: the lexicon of the markers
        context: the context that the teacher reads
        control: puts the same bonuses on other tokens of the answer: `any`, random ones; `like_entropy`, ones of similar entropy
        seed: for the controls
    """
    assert inputs.ref_entropy is not None
    paid = (
        inputs.spans[f"<{lexicon}>"]
        & inputs.teacher[context].mask
        & (inputs.ref_entropy > fork)
        & (inputs.advantages > 0)
    )
    bonus = torch.where(paid, coefficient * (-_gap(inputs, context)).clamp(0.0, bound), 0.0)
    bonus = bonus * (total / bonus.abs().sum(-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
    if control != "none":
        strata = 10 if control == "like_entropy" else 1
        bonus = permuted(inputs, bonus, inputs.sampled_mask, strata=strata, seed=seed)
    return inputs.advantages + bonus


def _gap(inputs: LossInputs, context: str) -> Tensor:
    return inputs.teacher[context].logprobs - inputs.old_logprobs


def _keeping_sign(advantages: Tensor, change: Tensor) -> Tensor:
    """advantages + change, but 0 where the sum has another sign than the advantage."""
    summed = advantages + change
    return torch.where(summed * advantages > 0, summed, 0.0)


def _where_in_context(inputs: LossInputs, context: str, changed: Tensor) -> Tensor:
    return torch.where(inputs.teacher[context].mask, changed, inputs.advantages)
