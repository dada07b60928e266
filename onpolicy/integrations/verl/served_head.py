"""A teacher on verl's teacher servers: of its distributions the sampled token and the K most likely ones are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schedules import Coefficients
from onpolicy.contracts import AnyName
from onpolicy.losses.objective import Objective
from onpolicy.trainer.build import build_objective
from onpolicy.trainer.chunked_head import TokenStats, token_stats
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.trainer.loss_inputs import loss_inputs
from onpolicy.types import REF, TrainBatch

SMALLEST_REST = 1e-30
"""The probability outside of the known tokens is at least this, so that its logarithm stays finite."""


@dataclass(frozen=True)
class ServedHead:
    """Logits that are exact log-probabilities at the known tokens, and share what is left of the probability evenly among all others.

    Whatever reads the known tokens and the sum of the rest alone, as a divergence on the teacher's most likely tokens with a bucket for all
    others does, gets the teacher's own numbers.
    """

    vocabulary: int
    """V, the student's."""

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., 2 (1 + K)]`` of ``states`` -> ``[..., V]``."""
        ids, known = hidden.chunk(2, -1)
        ids = ids.long()
        # the sampled token may be one of the likely ones; an id beyond the student's table, of a teacher whose table is padded further, is
        # none that text can have
        can_be = ids[..., 1:] < self.vocabulary
        least = known[..., 1:].masked_fill(~can_be, torch.inf)
        other = (ids[..., 1:] != ids[..., :1]) & can_be
        ids, known = (torch.cat([x[..., :1], torch.where(other, x[..., 1:], x[..., :1])], -1) for x in (ids, known))
        rest = 1.0 - known[..., :1].exp() - torch.where(other, known[..., 1:].exp(), 0.0).sum(-1, keepdim=True)
        others = self.vocabulary - 1 - other.sum(-1, keepdim=True)
        spread = (rest.clamp(min=SMALLEST_REST) / others).log()
        if ids.shape[-1] > 1:  # what rounding leaves of the rest may not make a token as likely as the most likely ones
            spread = torch.minimum(spread, least.amin(-1, keepdim=True) - 1e-3)
        return spread.expand(*known.shape[:-1], self.vocabulary).scatter(-1, ids, known)

    def mapped(self, function: Callable[[Head], Head]) -> ServedHead:
        return self


def states(ids: Tensor, logprobs: Tensor) -> Tensor:
    """What ``ServedHead`` reads in the place of hidden states; ids are exact in float32 up to 16 million.

    Args:
        ids: [..., 1 + K] the sampled token, then the teacher's most likely ones
        logprobs: [..., 1 + K]
    """
    return torch.cat([ids.to(logprobs.dtype), logprobs], -1)


def is_exact(resolved: ResolvedConfig, k: int) -> bool:
    """Whether an objective computes the same loss from the served part of a teacher as from all of it.

    Each term is tried on made-up models, whatever its weight, at the beginning, in the middle and at the end of its schedules.

    Args:
        resolved: the config, whose schedules move
        k: tokens that are served beside the sampled one
    """
    objective, scheduled, last = build_objective(resolved), Coefficients(resolved.coefficients), resolved.config.steps
    alone = [replace(objective, terms=(replace(term, weight=1.0),)) for term in objective.terms]
    for step in sorted({1, max(1, last // 2), last}) if resolved.coefficients else (1,):
        scheduled.set(step, {})
        if not all(_reads_served(one, resolved, k) for one in alone):
            return False
    return True


def _reads_served(objective: Objective, resolved: ResolvedConfig, k: int) -> bool:
    """Whether the loss and its gradient are the same from both, as things stand."""
    draw = torch.Generator().manual_seed(0)
    rows, length, vocabulary = 8, 32, 4 * k + 64
    ids = torch.randint(vocabulary, (rows, length), generator=draw)
    logits = {who: torch.randn(rows * length, vocabulary, generator=draw, dtype=torch.float64) for who in ("", REF)}
    # any threshold lies between two tokens
    certainty = torch.logspace(-1.0, 1.5, rows * length, dtype=torch.float64)[:, None]
    teachers = {
        name: certainty * torch.randn(rows * length, vocabulary, generator=draw, dtype=torch.float64)
        for name in resolved.contexts
    }
    mask = torch.ones(rows, length, dtype=torch.bool)
    batch = TrainBatch(
        examples=(),
        completion_ids=ids,
        sampled_mask=mask,
        rollout_logprobs=-torch.rand(rows, length, generator=draw, dtype=torch.float64),
        advantages=torch.randn(rows, length, generator=draw, dtype=torch.float64),
        context_masks=dict.fromkeys(teachers, mask),
        routes=AnyName(lambda: torch.ones(rows)),
        spans=AnyName(lambda: torch.rand(rows, length, generator=torch.Generator().manual_seed(1)) < 0.5),
    )
    whole = {name: HiddenStates(own, Head()) for name, own in teachers.items()}
    served = {name: HiddenStates(*_served(own, ids.flatten(), k)) for name, own in teachers.items()}
    ref = {REF: HiddenStates(logits[REF], Head())} if objective.needs_ref else {}
    one, other = (
        _loss(objective, batch, logits[""], theirs | ref, resolved.lexicons, known=known)
        for theirs, known in ((whole, True), (served, False))
    )
    return bool(torch.allclose(one, other, rtol=1e-7, atol=1e-9))


def _served(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, ServedHead]:
    logprobs = logits.log_softmax(-1)
    asked = torch.cat([ids[:, None], logprobs.topk(k, -1).indices], -1)
    return states(asked, logprobs.gather(-1, asked)), ServedHead(logits.shape[-1])


def _loss(
    objective: Objective,
    batch: TrainBatch,
    student: Tensor,
    teachers: Mapping[str, HiddenStates],
    lexicons: Sequence[str],
    *,
    known: bool,
) -> Tensor:
    """The loss, and its gradient on the student's logits: ``[1 + N V]``.

    Args:
        known: whether the teachers' entropies are; otherwise each token has another one's, and whatever looks at them shows
    """
    leaf = student.clone().requires_grad_()
    stats = token_stats(
        HiddenStates(leaf, Head()),
        teachers,
        batch.completion_ids.flatten(),
        objective.comparisons,
        marker_ids=dict.fromkeys(lexicons, torch.arange(1, 5)),
        temperatures=objective.temperatures,
    )
    inputs = loss_inputs(batch, stats if known else _with_other_entropies(stats), None)
    loss = objective.loss(inputs, objective.survey([inputs]))
    (gradient,) = torch.autograd.grad(loss, leaf)
    return torch.cat([loss.detach()[None], gradient.flatten()])


def _with_other_entropies(stats: TokenStats) -> TokenStats:
    others = {context: entropy.flip(0) for context, entropy in stats.teacher_entropy.items() if context != REF}
    return replace(
        stats,
        teacher_entropy={**stats.teacher_entropy, **others},
        tempered={temperature: _with_other_entropies(own) for temperature, own in stats.tempered.items()},
    )
