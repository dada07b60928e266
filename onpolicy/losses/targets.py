"""Targets that the student is trained towards: ``(teacher, seen) -> [..., V]``, log-probabilities.

A target edits the teacher's distribution over the vocabulary; a token weight scales the loss along the completion. No
gradient flows through a target.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from onpolicy.losses.comparison import Distributions, reads_ref


def identity(teacher: Tensor, seen: Distributions) -> Tensor:
    """The teacher itself."""
    return teacher


def temperature(teacher: Tensor, seen: Distributions, *, temperature: float) -> Tensor:
    """q^(1 / temperature), normalised: above 1 the teacher is less confident (TS-OPSD, arXiv 2606.00755).

    Args:
        temperature: above 0
    """
    if temperature <= 0:
        raise ValueError(f"target.temperature must be above 0, got {temperature}")
    return (teacher / temperature).log_softmax(-1)


def top_k(teacher: Tensor, seen: Distributions, *, k: int = 16) -> Tensor:
    """The teacher on its k likeliest tokens, normalised; the student keeps the whole vocabulary (EOPD, arXiv 2603.07079).

    Args:
        k: entries kept
    """
    if k < 1:
        raise ValueError(f"target.k must be at least 1, got {k}")
    kept = teacher.topk(min(k, teacher.shape[-1]), dim=-1)
    return torch.full_like(teacher, -torch.inf).scatter(-1, kept.indices, kept.values.log_softmax(-1))


@reads_ref
def arithmetic_mix(teacher: Tensor, seen: Distributions, *, share: float = 0.5) -> Tensor:
    """share pi_0 + (1 - share) q: every token keeps at least that fraction of the reference model's probability.

    Args:
        share: weight of the reference model, 0 to 1
    """
    return _mix(_ref(seen), teacher, torch.full_like(teacher[..., 0], _share(share)))


@reads_ref
def prior_anchor(teacher: Tensor, seen: Distributions, *, scale: float = 1.0) -> Tensor:
    """U pi_0 + (1 - U) q, U = sigmoid(p(y) (log p(y) - log q(y)) / scale), p the student, y the sampled token.

    AD-OPSD (arXiv 2607.10805): the more the teacher rejects a token that the student is confident in, the more of the reference
    model returns.

    Args:
        scale: scale of the log-ratio, nats
    """
    student, theirs = (_pick(logprobs, seen.token_ids) for logprobs in (seen.student, teacher))
    return _mix(_ref(seen), teacher, torch.sigmoid(student.exp() * (student - theirs) / scale))


@reads_ref
def geometric_mix(teacher: Tensor, seen: Distributions, *, share: float = 0.5) -> Tensor:
    """pi_0^share q^(1 - share), normalised: the optimum of following the teacher under a KL penalty to the reference model.

    beta-OPSD (arXiv 2607.28582) with share = 1 - beta.

    Args:
        share: weight of the reference model, 0 to 1
    """
    share = _share(share)
    finite = torch.finfo(teacher.dtype).min / 4  # 0 * -inf is not 0
    return (share * _ref(seen).clamp(min=finite) + (1.0 - share) * teacher.clamp(min=finite)).log_softmax(-1)


@reads_ref
def pmi_residual(
    teacher: Tensor,
    seen: Distributions,
    *,
    reference_context: str = "reference",
    kappa: float = 10.0,
    beta: float = 1.0,
) -> Tensor:
    """softmax(log pi_0 + kappa tanh(d / kappa) / beta), d = log q - log q_ref centred over the vocabulary.

    Purified OPSD (arXiv 2607.02234, section 3.2): the effect of the reference text without the question is subtracted from
    its effect with the question; the difference is added to the reference model.

    Args:
        reference_context: the context whose teacher reads the reference without the question
        kappa: bound of the difference, nats
        beta: temperature of the difference
    """
    difference = teacher - seen.teachers[reference_context]
    centred = difference - difference.mean(-1, keepdim=True)
    return (_ref(seen) + kappa * torch.tanh(centred / kappa) / beta).log_softmax(-1)


@reads_ref
def marker_mass_floor(
    teacher: Tensor,
    seen: Distributions,
    *,
    lexicon: str = "self_doubt",
    share: float = 1.0,
    control: Literal["none", "others"] = "none",
) -> Tensor:
    """The distribution nearest to q whose mass M on a lexicon's markers is at least share times the reference model's.

    With E the markers and m = max(M(q), share M(pi_0)): q m / M(q) on E, q (1 - m) / (1 - M(q)) elsewhere. It minimises
    KL(. || q) under the constraint, so the teacher's relative probabilities among the markers, and among the other tokens, do
    not change.

    Args:
        lexicon: the lexicon of the markers; only those that are one token of the tokenizer
        share: fraction of the reference model's mass that is kept, 0 to 1
        control: `others` gives the same mass m - M(q) to the reference model's other tokens instead: (1 - d) q + d pi_0 without E
    """
    ids = seen.marker_ids[lexicon]
    finite = teacher.clamp(
        min=torch.finfo(teacher.dtype).min / 4
    )  # a teacher without any marker gives them equal shares
    inside = teacher[..., ids].logsumexp(-1, keepdim=True)
    floor = _ref(seen)[..., ids].logsumexp(-1, keepdim=True) + math.log(max(_share(share), 1e-30))
    floor = floor.clamp(max=-torch.finfo(teacher.dtype).eps)
    others = finite.index_fill(-1, ids, -torch.inf).log_softmax(-1) + torch.log1p(-floor.exp())
    floored = others.index_copy(-1, ids, finite[..., ids].log_softmax(-1) + floor)
    if control == "others":
        moved = (floor.exp() - inside.exp()).clamp(0.0, 1.0)[..., 0]
        floored = _mix(_ref(seen).index_fill(-1, ids, -torch.inf).log_softmax(-1), teacher, moved)
    return torch.where(floor > inside, floored, teacher)


@reads_ref
def prior_at_markers(
    teacher: Tensor, seen: Distributions, *, lexicon: str = "self_doubt", saturation: float = 0.05
) -> Tensor:
    """s pi_0 + (1 - s) q, s = min(1, M(pi_0) / saturation), M the mass on a lexicon's markers.

    Holds the reference model wherever a marker was likely, the choice of what else stands there included. The token weight
    ``protect_markers`` takes the loss away at the same tokens: what is decided there may still change with what is trained
    elsewhere.

    Args:
        lexicon: the lexicon of the markers; only those that are one token of the tokenizer
        saturation: marker mass from which the target is the reference model
    """
    ref = _ref(seen)
    mass = ref[..., seen.marker_ids[lexicon]].logsumexp(-1).exp()
    return _mix(ref, teacher, (mass / saturation).clamp(max=1.0))


def _ref(seen: Distributions) -> Tensor:
    assert seen.ref is not None
    return seen.ref


def _share(share: float) -> float:
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"target.share must lie between 0 and 1, got {share}")
    return share


def _mix(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """log(share one + (1 - share) other), share ``[...]``."""
    return torch.logaddexp(one + share.log()[..., None], other + torch.log1p(-share)[..., None])


def _pick(logprobs: Tensor, ids: Tensor) -> Tensor:
    return logprobs.gather(-1, ids[..., None])[..., 0]
