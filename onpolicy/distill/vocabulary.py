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

from onpolicy.distill.compare import Comparison

Head = Callable[[Tensor], Tensor]
"""Hidden states ``[..., H]`` -> logits ``[..., V]``."""

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


def read(
    student: States,
    teachers: Mapping[str, States],
    token_ids: Tensor,
    comparisons: Iterable[Comparison] = (),
    *,
    chunk: int = TOKENS_PER_CHUNK,
) -> Readings:
    """Log-probability and entropy of student and teachers at each token, and each comparison between them.

    Args:
        student: states of the N tokens under the student
        teachers: by view, states of the same N tokens; no gradient flows into them
        token_ids: [N] the sampled tokens
        comparisons: what to compare; each names a view in ``teachers``
        chunk: tokens whose vocabulary stands in memory at once
    """
    views, comparisons = list(teachers), list(comparisons)

    def piece(hidden: Tensor, ids: Tensor, *teacher_hidden: Tensor) -> tuple[Tensor, ...]:
        logp = _log_distribution(student.head, hidden)  # [n, V]
        out = [_pick(logp, ids), _entropy(logp.detach())]
        with torch.no_grad():
            taught = {v: _log_distribution(teachers[v].head, h) for v, h in zip(views, teacher_hidden, strict=True)}
        for view in views:
            out += [_pick(taught[view], ids), _entropy(taught[view])]
        return (*out, *(comparison(logp, taught[comparison.view]) for comparison in comparisons))

    pieces = []
    for start in range(0, max(len(token_ids), 1), chunk):
        part = slice(start, start + chunk)
        arguments = (student.hidden[part], token_ids[part], *(teachers[v].hidden[part].detach() for v in views))
        if torch.is_grad_enabled():
            pieces.append(checkpoint(piece, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(piece(*arguments))
    columns = [torch.cat(column) for column in zip(*pieces, strict=True)]
    return Readings(
        logprobs=columns[0],
        entropy=columns[1],
        teacher_logprobs={v: columns[2 + 2 * i] for i, v in enumerate(views)},
        teacher_entropy={v: columns[3 + 2 * i] for i, v in enumerate(views)},
        divergences=dict(zip(comparisons, columns[2 + 2 * len(views) :], strict=True)),
    )


def _log_distribution(head: Head, hidden: Tensor) -> Tensor:
    """float32 whatever the model runs in: bf16 log-probabilities are off by up to 1 %."""
    return head(hidden).float().log_softmax(-1)


def _pick(logp: Tensor, ids: Tensor) -> Tensor:
    return logp.gather(-1, ids[:, None])[:, 0]


def _entropy(logp: Tensor) -> Tensor:
    """-sum p log p in nats; 0 log 0, which is nan in floating point, counts as 0."""
    return -(logp.exp() * logp).nansum(-1)
