"""From hidden states to per-token numbers, without ever holding the vocabulary for all tokens at once.

The language-model head runs on a chunk of tokens at a time and is run again in the backward pass, so memory is
``chunk x V`` instead of ``N x V``. N counts sampled tokens only: prompts and padding never reach the head. Within a chunk
everything but the matrix product is done on slices that stay in the processor's cache.

In the backward pass a comparison on selected entries needs neither the teacher nor automatic differentiation over the
vocabulary. With p the student's softmax, R = log of the probability outside the entries E,

    d log p_i / dz_j = [i = j] - p_j
    d R / dz_j       = [j not in E] p_j exp(-R) - p_j

and tokens whose loss has no gradient are skipped. A comparison on the whole vocabulary is differentiated by torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from onpolicy.losses.comparison import Comparison, Distributions
from onpolicy.losses.supports import joined
from onpolicy.losses.targets import identity
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.trainer.zero3 import gathered
from onpolicy.types import REF, STUDENT

TOKENS_PER_CHUNK = 256
"""At a vocabulary of 150k this holds about 150 MB of logits for the student and for each teacher."""
LOGITS_PER_SLICE = {"cpu": 4_000_000, "cuda": 64_000_000}
"""Few enough to stay in cache, and below 32 MB, above which every new tensor costs the CPU page faults."""
LARGEST_POOLED_TENSOR = 8_000_000
"""Numbers in the largest tensor that the CPU's allocator keeps for reuse, 32 MB in float32."""
MIN_REST_LOGPROB = -80.0
"""The log-probability outside the selected entries is clamped here: exp(80) is the last that float32 holds with a margin."""


@dataclass(frozen=True)
class TokenStats:
    """Per-token numbers, all ``[N]``; only ``logprobs`` and ``divergences`` carry gradient."""

    logprobs: Tensor
    entropy: Tensor
    teacher_logprobs: Mapping[str, Tensor]
    teacher_entropy: Mapping[str, Tensor]
    divergences: Mapping[Comparison, Tensor]
    marker_mass: Mapping[tuple[str, str], Tensor]
    """(context, STUDENT or REF; lexicon) -> log of the probability of its markers."""


def token_stats(
    student: HiddenStates,
    teachers: Mapping[str, HiddenStates],
    token_ids: Tensor,
    comparisons: Iterable[Comparison] = (),
    *,
    marker_ids: Mapping[str, Tensor] | None = None,
    chunk: int | None = None,
) -> TokenStats:
    """Log-probability, entropy and marker mass of student and teachers at each token, and each comparison between them.

    Args:
        student: hidden states of the N tokens under the student
        teachers: by context (or REF), hidden states of the same N tokens; no gradient flows into them
        token_ids: [N] the sampled tokens
        comparisons: each names a context in ``teachers``
        marker_ids: by lexicon, the ids whose probability mass is returned
        chunk: tokens whose logits are in memory at once; None: chosen by the size of the vocabulary
    """
    assert isinstance(student.head, Head)
    with gathered(*student.weights, *(w for teacher in teachers.values() for w in teacher.weights)):
        request = _Request(
            student.head,
            student.weights,
            teachers,
            token_ids,
            tuple(comparisons),
            dict(marker_ids or {}),
            chunk or _tokens_per_chunk(student.vocabulary),  # a sharded weight has no rows until it is gathered
            _autocast_dtype(student.hidden),
        )
        logprobs, divergences, stats = _ChunkedHead.apply(  # type: ignore[no-untyped-call]
            request, student.hidden, student.head.weight, student.head.bias
        )
    columns = iter(stats.unbind(-1))
    theirs = {who: [next(columns) for _ in range(2 + len(request.lexicons))] for who in teachers}
    own = [next(columns) for _ in range(1 + len(request.lexicons))]
    masses = {STUDENT: own[1:]} | {who: column[2:] for who, column in theirs.items()}
    return TokenStats(
        logprobs=logprobs,
        entropy=own[0],
        teacher_logprobs={context: column[0] for context, column in theirs.items()},
        teacher_entropy={context: column[1] for context, column in theirs.items()},
        marker_mass={
            (who, name): m for who, mass in masses.items() for name, m in zip(request.lexicons, mass, strict=True)
        },
        divergences=dict(zip(request.comparisons, divergences.unbind(-1), strict=True)),
    )


def _tokens_per_chunk(vocabulary: int) -> int:
    """Fewer if the logits then fit a pooled tensor, as long as the matrix product stays a wide one."""
    fit = LARGEST_POOLED_TENSOR // vocabulary
    return fit if TOKENS_PER_CHUNK // 2 <= fit < TOKENS_PER_CHUNK else TOKENS_PER_CHUNK


def _autocast_dtype(hidden: Tensor) -> torch.dtype | None:
    """What the head runs in; None: its own dtype."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@dataclass(frozen=True)
class _Request:
    """The arguments of ``token_stats``, which the backward pass needs again."""

    head: Head
    weights: tuple[Tensor, ...]
    teachers: Mapping[str, HiddenStates]
    token_ids: Tensor
    comparisons: tuple[Comparison, ...]
    lexicons: Mapping[str, Tensor]
    tokens_per_chunk: int
    dtype: torch.dtype | None

    def distributions(self, student: Tensor, teachers: Mapping[str, Tensor], rows: Tensor) -> Distributions:
        return Distributions(student, teachers, teachers.get(REF), self.token_ids[rows], self.lexicons)


@dataclass(frozen=True)
class _SelectedEntries:
    """What the backward pass of a comparison on selected entries needs, for n tokens."""

    tail: str
    ids: Tensor
    """[n, k]."""
    top: Tensor
    """[n, k] the student's log-probabilities there."""
    rest: Tensor
    """[n, 1] the log of its probability elsewhere."""
    target: Tensor
    """[n, K] the target on the same entries."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.ids, self.top, self.rest, self.target

    def at(self, rows: Tensor) -> _SelectedEntries:
        return _SelectedEntries(self.tail, *(x[rows] for x in self.tensors))

    def empty(self, tokens: int) -> _SelectedEntries:
        """Uninitialised tensors of the same widths for so many tokens."""
        return _SelectedEntries(self.tail, *(x.new_empty(tokens, x.shape[-1]) for x in self.tensors))

    def put(self, rows: Tensor, part: _SelectedEntries) -> None:
        for all_rows, own in zip(self.tensors, part.tensors, strict=True):
            all_rows[rows] = own


class _HeadPass:
    """One pass over the logits of student and teachers, chunk by chunk. Heads cast for autocast live as long as the pass."""

    def __init__(self, request: _Request) -> None:
        self.request = request
        self._casts: dict[int, Head] = {}

    def chunks(self, rows: Tensor) -> Iterator[Tensor]:
        yield from rows.split(self.request.tokens_per_chunk)

    def slices(self, logits: Tensor) -> Iterator[slice]:
        rows = max(1, LOGITS_PER_SLICE.get(logits.device.type, LOGITS_PER_SLICE["cpu"]) // logits.shape[-1])
        return (slice(i, i + rows) for i in range(0, max(len(logits), 1), rows))

    def student_logits(self, hidden: Tensor) -> Tensor:
        return _in_float32(self.cast(self.request.head).logits(hidden))

    def teacher_logits(self, teachers: Mapping[str, HiddenStates], rows: Tensor) -> dict[str, Tensor]:
        return {
            context: _in_float32(self.cast(states.head).logits(states.hidden[rows]))
            for context, states in teachers.items()
        }

    def cast(self, head: Any) -> Any:
        """Once a pass rather than once a chunk."""
        dtype = self.request.dtype
        if dtype is None or not isinstance(head, Head) or head.weight is None:
            return head
        key = id(head.weight)
        if key not in self._casts:
            bias = None if head.bias is None else head.bias.to(dtype)
            self._casts[key] = replace(head, weight=head.weight.to(dtype), bias=bias)
        return self._casts[key]


class _ForwardPass(_HeadPass):
    """Per-token numbers, and what the backward pass needs of each comparison on selected entries."""

    def __init__(self, request: _Request) -> None:
        super().__init__(request)
        self.selected: dict[int, _SelectedEntries] = {}
        """Index of a comparison -> its entries; comparisons on the whole vocabulary keep nothing."""

    def run(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities ``[N]``, comparisons ``[N, C]``, statistics ``[N, F]``: each teacher's, then the student's but the first."""
        lexicons, tokens = len(self.request.lexicons), len(hidden)
        # allocated before the first chunk: small tensors that outlive large ones would fragment the heap
        logprobs, divergences, stats = (
            torch.empty(
                tokens,
                width,
                device=hidden.device,
                dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32,
            )
            for width in (1, len(self.request.comparisons), len(self.request.teachers) * (2 + lexicons) + 1 + lexicons)
        )
        for rows in self.chunks(torch.arange(tokens, device=hidden.device)):
            logits, theirs = self.student_logits(hidden[rows]), self.teacher_logits(self.request.teachers, rows)
            for part in self.slices(logits):
                found = self._forward_slice(logits[part], {c: z[part] for c, z in theirs.items()}, rows[part], tokens)
                logprobs[rows[part]], divergences[rows[part]], stats[rows[part]] = found
            del logits, theirs  # before the next ones are made
        return logprobs[:, 0], divergences, stats

    def _forward_slice(
        self, logits: Tensor, theirs: Mapping[str, Tensor], rows: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids = self.request.token_ids[rows]
        logp = logits.log_softmax(-1)
        teachers = {context: z.log_softmax(-1) for context, z in theirs.items()}
        seen = self.request.distributions(logp, teachers, rows)
        p, q_of = logp.exp(), {context: logq.exp() for context, logq in teachers.items()}
        divergences = []
        for index, comparison in enumerate(self.request.comparisons):
            target = comparison.target(teachers[comparison.context], seen)
            entries = comparison.support(logp, target)
            if entries.ids is None:
                divergences.append(comparison.divergence(logp, target))
                continue
            unedited = target is teachers[comparison.context]
            q = q_of[comparison.context] if unedited else target.exp()
            on_entries = joined(*_split(target, q, entries.ids), entries.tail)
            selected = _SelectedEntries(entries.tail, entries.ids, *_split(logp, p, entries.ids), on_entries)
            divergences.append(comparison.divergence(joined(selected.top, selected.rest, entries.tail), on_entries))
            if index not in self.selected:
                self.selected[index] = selected.empty(tokens)
            self.selected[index].put(rows, selected)
        stats = [stat for context, logq in teachers.items() for stat in self._stats(logq, q_of[context], ids)]
        logprob, *own = self._stats(logp, p, ids)
        columns = torch.stack(divergences, -1) if divergences else logp.new_zeros(len(logp), 0)
        return logprob[:, None], columns, torch.stack([*stats, *own], -1)

    def _stats(self, logp: Tensor, p: Tensor, ids: Tensor) -> list[Tensor]:
        """Log-probability of the token, entropy, log mass of each lexicon's markers; overwrites ``p``."""
        masses = [logp[:, m].logsumexp(-1) for m in self.request.lexicons.values()]
        # in nats; 0 log 0, which is nan in floating point, counts as 0
        return [logp.gather(-1, ids[:, None])[:, 0], -p.mul_(logp).nansum(-1), *masses]


class _BackwardPass(_HeadPass):
    """Gradients of hidden states, weight and bias."""

    def __init__(self, request: _Request, selected: Mapping[int, _SelectedEntries]) -> None:
        super().__init__(request)
        self.selected = selected
        self.dense = [i for i in range(len(request.comparisons)) if i not in selected]
        """Indices of the comparisons on the whole vocabulary."""

    @property
    def teachers(self) -> Mapping[str, HiddenStates]:
        """The teachers read again; a target other than the teacher itself may read any context."""
        dense = [self.request.comparisons[i] for i in self.dense]
        edited = any(c.target is not identity for c in dense)
        return {
            context: states
            for context, states in self.request.teachers.items()
            if edited or any(c.context == context for c in dense)
        }

    def run(
        self, hidden: Tensor, needed: Sequence[bool], logprobs: Tensor, divergences: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """From the gradients on the log-probabilities ``[N]`` and the comparisons ``[N, C]``.

        Args:
            hidden: [N, H]
            needed: whether hidden states, weight and bias need a gradient
        """
        plain, head, teachers = self.request.head, self.cast(self.request.head), self.teachers
        d_hidden = torch.zeros_like(hidden) if needed[0] else None
        d_weight = torch.zeros_like(plain.weight) if plain.weight is not None and needed[1] else None
        d_bias = torch.zeros_like(plain.bias) if plain.bias is not None and needed[2] else None
        active = ((logprobs != 0) | (divergences != 0).any(-1)).nonzero()[:, 0]
        for rows in self.chunks(active):
            states = hidden[rows]
            logits, theirs = self.student_logits(states), self.teacher_logits(teachers, rows)
            for part in self.slices(logits):
                given = logprobs[rows[part]], divergences[rows[part]]
                self._backward_slice(logits[part], {c: z[part] for c, z in theirs.items()}, rows[part], *given)
            inner = logits if head.weight is None else logits.to(head.weight.dtype)
            if d_hidden is not None:
                d_hidden[rows] = (inner if head.weight is None else inner @ head.weight).to(hidden.dtype)
            if d_weight is not None:
                _add_product(d_weight, inner.T, states.to(inner.dtype))
            if d_bias is not None:
                d_bias += logits.sum(0)
            del logits, theirs, inner
        return d_hidden, d_weight, d_bias

    def _backward_slice(
        self, logits: Tensor, theirs: Mapping[str, Tensor], rows: Tensor, d_logprobs: Tensor, d_divergences: Tensor
    ) -> None:
        """Writes the gradient on ``weight h + bias`` over the logits."""
        p, ids = logits.softmax(-1), self.request.token_ids[rows]
        inner = {i: self._on_entries(i, s.at(rows), d_divergences[:, i]) for i, s in self.selected.items()}
        gradient = p * -(d_logprobs + sum(top.sum(-1) + rest[:, 0] for _, top, rest in inner.values()))[:, None]
        gradient.scatter_add_(-1, ids[:, None], d_logprobs[:, None])
        for selected, top, rest in inner.values():
            gradient.scatter_add_(-1, selected.ids, top)
            inside = p.gather(-1, selected.ids)
            gradient.addcmul_(p.scatter_(-1, selected.ids, 0.0), rest * (-selected.rest).exp())
            p.scatter_(-1, selected.ids, inside)
        if self.dense:
            gradient += self._on_vocabulary(logits, theirs, rows, d_divergences)
        if self.request.head.on_gradient is not None:
            self.request.head.on_gradient(rows, logits, gradient)
        logits.copy_(self.request.head.linear_gradient(logits, gradient))

    def _on_entries(
        self, index: int, selected: _SelectedEntries, given: Tensor
    ) -> tuple[_SelectedEntries, Tensor, Tensor]:
        """Gradients on the student's log-probabilities at the entries ``[n, k]`` and on that of the rest ``[n, 1]``."""
        with torch.enable_grad():
            top, rest = (x.detach().requires_grad_() for x in (selected.top, selected.rest))
            value = self.request.comparisons[index].divergence(joined(top, rest, selected.tail), selected.target)
            d_top, d_rest = torch.autograd.grad(value, [top, rest], given, allow_unused=True)
        zeros = torch.zeros_like
        return selected, zeros(top) if d_top is None else d_top, zeros(rest) if d_rest is None else d_rest

    def _on_vocabulary(self, logits: Tensor, theirs: Mapping[str, Tensor], rows: Tensor, given: Tensor) -> Tensor:
        """The gradient of the dense comparisons on the logits ``[n, V]``, by torch."""
        teachers = {context: z.log_softmax(-1) for context, z in theirs.items()}
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            logp = leaf.log_softmax(-1)
            seen = self.request.distributions(logp.detach(), teachers, rows)
            values = [self.request.comparisons[i].compare(logp, seen) for i in self.dense]
            return torch.autograd.grad(values, leaf, [given[:, i] for i in self.dense])[0]


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, request: _Request, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        forward = _ForwardPass(request)
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
        backward = _BackwardPass(ctx.request, ctx.selected)
        again = [w for states in backward.teachers.values() for w in states.weights]
        with torch.autocast(hidden.device.type, enabled=False), gathered(*ctx.request.weights, *again):
            gradients = backward.run(hidden, ctx.needs_input_grad[1:], logprobs, divergences)
        return None, *gradients


def _in_float32(logits: Tensor) -> Tensor:
    """Whatever the model runs in: bf16 log-probabilities are off by up to 1 %."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _split(logprobs: Tensor, p: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities at the entries ``[n, k]`` and of everything else together ``[n, 1]``; ``p`` is restored."""
    inside = p.gather(-1, ids)
    outside = p.scatter_(-1, ids, 0.0).sum(-1, keepdim=True).log().clamp(min=MIN_REST_LOGPROB)
    p.scatter_(-1, ids, inside)
    return logprobs.gather(-1, ids), outside


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, without a second tensor of its size if the dtypes agree."""
    if one.dtype == total.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other
