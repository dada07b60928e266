"""From hidden states to per-token numbers, without ever holding the vocabulary for all tokens at once.

The language-model head runs on a chunk of tokens at a time and is run again in the backward pass, so memory is
``chunk x V`` instead of ``N x V``. N counts sampled tokens only: prompts and padding never reach the head.
``trainer.head_passes`` computes a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from onpolicy.losses.comparison import Comparison
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.trainer.head_passes import LOGITS_PER_SLICE, BackwardPass, ForwardPass, HeadRequest
from onpolicy.trainer.zero3 import gathered
from onpolicy.types import STUDENT

TOKENS_PER_CHUNK = {"cpu": 256, "cuda": 2048}
"""At a vocabulary of 150k, 256 hold about 150 MB of logits for the student and for each teacher, 2,048 eight times as much. A GPU reads and
writes the gradient of the whole matrix once a chunk, which with 256 takes longer than the products."""
LARGEST_POOLED_TENSOR = 8_000_000
"""Numbers in the largest tensor that the CPU's allocator keeps for reuse, 32 MB in float32."""


@dataclass(frozen=True)
class TokenStats:
    """Per-token numbers, all ``[N]``; only ``logprobs`` and ``divergences`` carry gradient."""

    logprobs: Tensor
    entropy: Tensor
    teacher_logprobs: Mapping[str, Tensor]
    teacher_entropy: Mapping[str, Tensor]
    divergences: Mapping[Comparison, Tensor]
    marker_mass: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    """(context, STUDENT or REF; lexicon) -> log of the probability of its markers."""
    tempered: Mapping[float, TokenStats] = field(default_factory=dict)
    """By temperature other than 1: the same with all logits divided by it, without marker mass."""

    def mapped(self, function: Callable[[Tensor], Tensor]) -> TokenStats:
        """The same with each tensor replaced by what ``function`` makes of it."""
        return TokenStats(
            **{own.name: _mapped(getattr(self, own.name), function) for own in fields(self)},
        )

    @property
    def with_gradient(self) -> list[Tensor]:
        """Every tensor that carries gradient."""
        own = [self.logprobs, *self.divergences.values()]
        return own + [tensor for stats in self.tempered.values() for tensor in stats.with_gradient]


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(inner, function) for key, inner in value.items()}
    return value.mapped(function) if isinstance(value, TokenStats) else function(value)


def token_stats(
    student: HiddenStates,
    teachers: Mapping[str, HiddenStates],
    token_ids: Tensor,
    comparisons: Iterable[Comparison] = (),
    *,
    marker_ids: Mapping[str, Tensor] | None = None,
    temperatures: Iterable[float] = (),
    chunk: int | None = None,
    device: torch.device | None = None,
) -> TokenStats:
    """Log-probability, entropy and marker mass of student and teachers at each token, and each comparison between them.

    Args:
        student: hidden states of the N tokens under the student
        teachers: by context (or REF), hidden states of the same N tokens; no gradient flows into them
        token_ids: [N] the sampled tokens
        comparisons: each names a context in ``teachers``
        marker_ids: by lexicon, the ids whose probability mass is returned
        temperatures: those other than 1 at which the numbers are computed too; comparisons are made at their own
        chunk: tokens whose logits are in memory at once; None: chosen by the size of the vocabulary
        device: the one whose chunks and slices these are; None: that of the hidden states
    """
    assert isinstance(student.head, Head)
    device = device or student.hidden.device
    comparisons = tuple(comparisons)
    others = {*temperatures, *(c.temperature for c in comparisons)} - {1.0}
    head_weights = (*student.weights, *(w for teacher in teachers.values() for w in teacher.weights))
    with gathered(*head_weights, rounded=True):
        request = HeadRequest(
            student.head,
            student.weights,
            teachers,
            token_ids,
            comparisons,
            (1.0, *sorted(others)),
            dict(marker_ids or {}),
            chunk or _tokens_per_chunk(student.vocabulary, device),  # a sharded weight has no rows until it is gathered
            LOGITS_PER_SLICE.get(device.type, LOGITS_PER_SLICE["cpu"]),
            _autocast_dtype(student.hidden),
        )
        logprobs, divergences, stats = _ChunkedHead.apply(  # type: ignore[no-untyped-call]
            request, student.hidden, student.head.weight, student.head.bias
        )
    columns, each = iter(stats.unbind(-1)), dict(zip(comparisons, _columns(divergences), strict=True))
    found = {}
    for temperature, own in zip(request.temperatures, _columns(logprobs), strict=True):
        theirs = {who: (next(columns), next(columns)) for who in teachers}
        found[temperature] = TokenStats(
            logprobs=own,
            entropy=next(columns),
            teacher_logprobs={context: column[0] for context, column in theirs.items()},
            teacher_entropy={context: column[1] for context, column in theirs.items()},
            divergences=each,
        )
    mass = {(who, name): next(columns) for who in (*teachers, STUDENT) for name in request.lexicons}
    return replace(found.pop(1.0), marker_mass=mass, tempered=found)


def _columns(tensor: Tensor) -> list[Tensor]:
    """Each as a tensor of its own: FSDP hangs hooks on a model's outputs, which an operation in place takes off a view."""
    return [column.clone() for column in tensor.unbind(-1)]


def _tokens_per_chunk(vocabulary: int, device: torch.device) -> int:
    """On a CPU fewer if the logits then fit a pooled tensor, as long as the matrix product stays a wide one."""
    most = TOKENS_PER_CHUNK.get(device.type, TOKENS_PER_CHUNK["cpu"])
    fit = LARGEST_POOLED_TENSOR // vocabulary
    return fit if device.type == "cpu" and most // 2 <= fit < most else most


def _autocast_dtype(hidden: Tensor) -> torch.dtype | None:
    """What the head runs in; None: its own dtype."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, request: HeadRequest, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        forward = ForwardPass(request)
        with torch.autocast(hidden.device.type, enabled=False):
            logprobs, divergences, stats = forward.run(hidden)
        ctx.request, ctx.selected = request, forward.selected
        ctx.save_for_backward(hidden)
        ctx.mark_non_differentiable(stats)
        return logprobs, divergences, stats

    @staticmethod
    def backward(
        ctx: Any, logprobs: Tensor, divergences: Tensor, stats: Tensor
    ) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        (hidden,) = ctx.saved_tensors
        backward = BackwardPass(ctx.request, ctx.selected)
        again = [w for states in backward.teachers.values() for w in states.weights]
        with torch.autocast(hidden.device.type, enabled=False), gathered(*ctx.request.weights, *again, rounded=True):
            gradients = backward.run(hidden, ctx.needs_input_grad[1:], logprobs, divergences)
        return None, *gradients
