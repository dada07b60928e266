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
    views, comparisons, lexicons = list(teachers), list(comparisons), dict(marker_ids or {})

    def piece(hidden: Tensor, ids: Tensor, *teacher_hidden: Tensor) -> tuple[Tensor, ...]:
        logp = _log_distribution(student.head, hidden)  # [n, V]
        with torch.no_grad():
            taught = {v: _log_distribution(teachers[v].head, h) for v, h in zip(views, teacher_hidden, strict=True)}
        seen = Distributions(logp.detach(), taught, taught.get(START), ids, lexicons)
        out = [_pick(logp, ids), _entropy(seen.student)]
        for view in views:
            out += [_pick(taught[view], ids), _entropy(taught[view])]
        for markers in lexicons.values():
            out += [distribution[:, markers].logsumexp(-1) for distribution in (seen.student, *taught.values())]
        return (*out, *(comparison(logp, seen) for comparison in comparisons))

    pieces = []
    for start in range(0, max(len(token_ids), 1), chunk):
        part = slice(start, start + chunk)
        arguments = (student.hidden[part], token_ids[part], *(teachers[v].hidden[part].detach() for v in views))
        if torch.is_grad_enabled():
            pieces.append(checkpoint(piece, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(piece(*arguments))
    columns = iter([torch.cat(column) for column in zip(*pieces, strict=True)])
    own = [next(columns), next(columns)]
    theirs = {view: (next(columns), next(columns)) for view in views}
    mass = {(who, lexicon): next(columns) for lexicon in lexicons for who in (STUDENT, *views)}
    return Readings(
        logprobs=own[0],
        entropy=own[1],
        teacher_logprobs={view: logprobs for view, (logprobs, _) in theirs.items()},
        teacher_entropy={view: entropy for view, (_, entropy) in theirs.items()},
        marker_mass=mass,
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
