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
    comparisons, lexicons = list(comparisons), dict(marker_ids or {})
    # what is compared runs through the head again in the backward pass; the rest is only read
    compared = [v for v in teachers if any(c.target is not identity or c.view == v for c in comparisons)]
    alone = [v for v in teachers if v not in compared]

    def facts(logp: Tensor, ids: Tensor) -> list[Tensor]:
        return [
            _pick(logp, ids),
            _entropy(logp.detach()),
            *(logp.detach()[:, m].logsumexp(-1) for m in lexicons.values()),
        ]

    def piece(hidden: Tensor, ids: Tensor, *teacher_hidden: Tensor) -> tuple[Tensor, ...]:
        logp = _log_distribution(student.head, hidden)  # [n, V]
        with torch.no_grad():
            taught = {v: _log_distribution(teachers[v].head, h) for v, h in zip(compared, teacher_hidden, strict=True)}
        seen = Distributions(logp.detach(), taught, taught.get(START), ids, lexicons)
        distances = [comparison(logp, seen) for comparison in comparisons]
        return (*facts(logp, ids), *(fact for view in compared for fact in facts(taught[view], ids)), *distances)

    def glance(view: str, part: slice) -> list[Tensor]:
        with torch.no_grad():
            return facts(_log_distribution(teachers[view].head, teachers[view].hidden[part]), token_ids[part])

    pieces = []
    for start in range(0, max(len(token_ids), 1), chunk):
        part = slice(start, start + chunk)
        arguments = (student.hidden[part], token_ids[part], *(teachers[v].hidden[part].detach() for v in compared))
        if torch.is_grad_enabled():
            found = checkpoint(piece, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            found = piece(*arguments)
        pieces.append((*(fact for view in alone for fact in glance(view, part)), *found))
    columns = iter([torch.cat(column) for column in zip(*pieces, strict=True)])
    known = {who: [next(columns) for _ in range(2 + len(lexicons))] for who in (*alone, STUDENT, *compared)}
    return Readings(
        logprobs=known[STUDENT][0],
        entropy=known[STUDENT][1],
        teacher_logprobs={view: known[view][0] for view in teachers},
        teacher_entropy={view: known[view][1] for view in teachers},
        marker_mass={
            (who, name): mass for who, found in known.items() for name, mass in zip(lexicons, found[2:], strict=True)
        },
        divergences=dict(zip(comparisons, columns, strict=True)),
    )


def _log_distribution(head: Head, hidden: Tensor) -> Tensor:
    """float32 whatever the model runs in: bf16 log-probabilities are off by up to 1 %."""
    return head(hidden).float().log_softmax(-1)


def _pick(logp: Tensor, ids: Tensor) -> Tensor:
    return logp.gather(-1, ids[:, None])[:, 0]


def _entropy(logp: Tensor) -> Tensor:
    """-sum p log p in nats; 0 log 0, which is nan in floating point, counts as 0."""
    return -(logp.exp() * logp).nansum(-1)
