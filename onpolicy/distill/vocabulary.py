"""From hidden states to per-token numbers, without ever holding the vocabulary for all tokens at once.

The language-model head runs on a chunk of tokens at a time and is run again in the backward pass, so memory is
``chunk x V`` instead of ``N x V``. N counts sampled tokens only: prompts and padding never reach the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from onpolicy.distill.compare import Comparison, Distributions
from onpolicy.distill.target import identity

Head = Callable[[Tensor], Tensor]
"""Hidden states ``[..., H]`` -> logits ``[..., V]``."""

START = "<start model>"
"""Beside the views: the start model on the student's own prompt. No view can have this name in YAML by accident."""
STUDENT = "<student>"

TOKENS_PER_CHUNK = 256
"""At a vocabulary of 150k this holds about 150 MB for each tensor of log-probabilities."""


@dataclass(frozen=True)
class States:
    """The hidden states that predict N tokens, and the head that reads them."""

    hidden: Tensor
    """[N, H]."""
    head: Head


@dataclass(frozen=True)
class Readings:
    """Per-token numbers, all ``[N]``; only ``logprobs`` and ``divergences`` carry gradient."""

    logprobs: Tensor
    entropy: Tensor
    teacher_logprobs: Mapping[str, Tensor]
    teacher_entropy: Mapping[str, Tensor]
    divergences: Mapping[Comparison, Tensor]
    marker_mass: Mapping[tuple[str, str], Tensor]
    """(view, STUDENT or START; lexicon) -> log of the probability of its markers."""


def read(
    student: States,
    teachers: Mapping[str, States],
    token_ids: Tensor,
    comparisons: Iterable[Comparison] = (),
    *,
    marker_ids: Mapping[str, Tensor] | None = None,
    chunk: int = TOKENS_PER_CHUNK,
) -> Readings:
    """Log-probability, entropy and marker mass of student and teachers at each token, and each comparison between them.

    Args:
        student: states of the N tokens under the student
        teachers: by view (or START), states of the same N tokens; no gradient flows into them
        token_ids: [N] the sampled tokens
        comparisons: what to compare; each names a view in ``teachers``
        marker_ids: by lexicon, the ids whose probability is wanted
        chunk: tokens whose vocabulary stands in memory at once
    """
    pass_ = _Pass(student, teachers, tuple(comparisons), dict(marker_ids or {}))
    pieces = [pass_.chunk(token_ids, slice(i, i + chunk)) for i in range(0, max(len(token_ids), 1), chunk)]
    columns = iter([torch.cat(column) for column in zip(*pieces, strict=True)])
    order = (*pass_.alone, STUDENT, *pass_.compared)
    known = {who: [next(columns) for _ in range(2 + len(pass_.lexicons))] for who in order}
    return Readings(
        logprobs=known[STUDENT][0],
        entropy=known[STUDENT][1],
        teacher_logprobs={view: known[view][0] for view in teachers},
        teacher_entropy={view: known[view][1] for view in teachers},
        marker_mass={
            (who, name): mass for who in order for name, mass in zip(pass_.lexicons, known[who][2:], strict=True)
        },
        divergences=dict(zip(pass_.comparisons, columns, strict=True)),
    )


@dataclass(frozen=True)
class _Pass:
    """One pass over the vocabulary; what is compared runs through the head again backwards, the rest is only read."""

    student: States
    teachers: Mapping[str, States]
    comparisons: tuple[Comparison, ...]
    lexicons: Mapping[str, Tensor]

    @property
    def compared(self) -> list[str]:
        """A target other than the teacher itself may look at any view."""
        edited = any(c.target is not identity for c in self.comparisons)
        return [view for view in self.teachers if edited or any(c.view == view for c in self.comparisons)]

    @property
    def alone(self) -> list[str]:
        return [view for view in self.teachers if view not in self.compared]

    def chunk(self, token_ids: Tensor, part: slice) -> tuple[Tensor, ...]:
        """Facts of the views that are alone, of the student, of the views that are compared; then the comparisons. ``[n]`` each."""
        found: list[Tensor] = []
        with torch.no_grad():
            for view in self.alone:
                states = self.teachers[view]
                found += self.facts(_log_distribution(states.head, states.hidden[part]), token_ids[part])
        teacher_hidden = [self.teachers[view].hidden[part].detach() for view in self.compared]
        arguments = (self.student.hidden[part], token_ids[part], *teacher_hidden)
        if torch.is_grad_enabled():
            return (*found, *checkpoint(self.piece, *arguments, use_reentrant=False, preserve_rng_state=False))
        return (*found, *self.piece(*arguments))

    def piece(self, hidden: Tensor, ids: Tensor, *teacher_hidden: Tensor) -> tuple[Tensor, ...]:
        logp = _log_distribution(self.student.head, hidden)  # [n, V]
        with torch.no_grad():
            taught = {
                view: _log_distribution(self.teachers[view].head, h)
                for view, h in zip(self.compared, teacher_hidden, strict=True)
            }
        seen = Distributions(logp.detach(), taught, taught.get(START), ids, self.lexicons)
        theirs = [fact for view in self.compared for fact in self.facts(taught[view], ids)]
        return (*self.facts(logp, ids), *theirs, *(comparison(logp, seen) for comparison in self.comparisons))

    def facts(self, logp: Tensor, ids: Tensor) -> list[Tensor]:
        """Log-probability of the token, entropy, log mass of each lexicon's markers."""
        still = logp.detach()
        return [_pick(logp, ids), _entropy(still), *(still[:, m].logsumexp(-1) for m in self.lexicons.values())]


def _log_distribution(head: Head, hidden: Tensor) -> Tensor:
    """float32 whatever the model runs in: bf16 log-probabilities are off by up to 1 %."""
    return head(hidden).float().log_softmax(-1)


def _pick(logp: Tensor, ids: Tensor) -> Tensor:
    return logp.gather(-1, ids[:, None])[:, 0]


def _entropy(logp: Tensor) -> Tensor:
    """-sum p log p in nats; 0 log 0, which is nan in floating point, counts as 0."""
    return -(logp.exp() * logp).nansum(-1)
