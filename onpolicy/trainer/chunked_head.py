"""From hidden states to per-token numbers, without ever holding the vocabulary for all tokens at once.

The language-model head runs on a chunk of tokens at a time and is run again in the backward pass, so memory is
``chunk x V`` instead of ``N x V``. N counts sampled tokens only: prompts and padding never reach the head. Within a chunk
everything but the matrix product is done on slices that stay in the processor's cache.

Backwards, a comparison on chosen entries needs neither the teacher nor automatic differentiation over the vocabulary. With
p the student's softmax, L = log sum_v exp z_v, R = log of the probability outside the entries E,

    d log p_i / dz_j = [i = j] - p_j
    d R / dz_j       = [j not in E] p_j exp(-R) - p_j

and tokens whose loss has no gradient are left out. A comparison on the whole vocabulary is differentiated by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from onpolicy.losses.comparison import Comparison, Distributions
from onpolicy.losses.supports import joined
from onpolicy.losses.targets import identity
from onpolicy.trainer.zero3 import whole
from onpolicy.types import REF, STUDENT

TOKENS_PER_CHUNK = 256
"""At a vocabulary of 150k this holds about 150 MB of logits for the student and for each teacher."""
SLICE = {"cpu": 4_000_000, "cuda": 64_000_000}
"""Logits looked at together: what stays in cache, and below 32 MB, from where on every new tensor costs the CPU page faults."""
HEAP = 8_000_000
"""Numbers in the largest tensor that the CPU's allocator keeps for the next one, 32 MB in float32."""
LEAST = -80.0
"""The log-probability outside the chosen entries is cut off here: exp(80) is the last that float32 holds with room."""


@dataclass(frozen=True)
class Head:
    """Hidden states ``[..., H]`` -> logits ``[..., V]``: ``z = scale (weight h + bias)``, then ``cap tanh(z / cap)``."""

    weight: Tensor | None = None
    """[V, H]; None where the states are logits already."""
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None
    watch: Callable[[Tensor, Tensor, Tensor], None] | None = None
    """Told, in the backward pass, which of the N tokens are looked at, their logits and the gradient of the loss on them."""

    def __call__(self, hidden: Tensor) -> Tensor:
        logits = hidden if self.weight is None else linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def through(self, logits: Tensor, gradient: Tensor) -> Tensor:
        """From the gradient on the logits to the gradient on ``weight h + bias``."""
        if self.cap is not None:
            gradient = gradient * (1.0 - (logits / self.cap) ** 2)
        return gradient if self.scale == 1.0 else gradient * self.scale


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states that predict N tokens, and the head that reads them."""

    hidden: Tensor
    """[N, H]; logits [N, V] under a head without a weight."""
    head: Head | Callable[[Tensor], Tensor]
    """Hidden states -> logits; the student's has to be a ``Head``."""
    weights: tuple[Tensor, ...] = ()
    """What the head reads, where a rank may hold only a part of it."""

    @property
    def vocabulary(self) -> int:
        """V."""
        weight = self.head.weight if isinstance(self.head, Head) else None
        return self.hidden.shape[-1] if weight is None else len(weight)


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


def read(
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
        student: states of the N tokens under the student
        teachers: by context (or REF), states of the same N tokens; no gradient flows into them
        token_ids: [N] the sampled tokens
        comparisons: what to compare; each names a context in ``teachers``
        marker_ids: by lexicon, the ids whose probability is wanted
        chunk: tokens whose vocabulary stands in memory at once; None: as suits the vocabulary
    """
    assert isinstance(student.head, Head)
    with whole(*student.weights, *(w for taught in teachers.values() for w in taught.weights)):
        pass_ = _ChunkedHead(
            student.head,
            teachers,
            token_ids,
            tuple(comparisons),
            dict(marker_ids or {}),
            chunk or _tokens_per_chunk(student.vocabulary),
            _dtype(student.hidden),
            student.weights,
        )
        logprobs, divergences, facts = _Read.apply(pass_, student.hidden, student.head.weight, student.head.bias)  # type: ignore[no-untyped-call]
    columns = iter(facts.unbind(-1))
    rest = {who: [next(columns) for _ in range(2 + len(pass_.lexicons))] for who in teachers}
    own = [next(columns) for _ in range(1 + len(pass_.lexicons))]
    masses = {STUDENT: own[1:]} | {who: column[2:] for who, column in rest.items()}
    return TokenStats(
        logprobs=logprobs,
        entropy=own[0],
        teacher_logprobs={context: column[0] for context, column in rest.items()},
        teacher_entropy={context: column[1] for context, column in rest.items()},
        marker_mass={
            (who, name): m for who, mass in masses.items() for name, m in zip(pass_.lexicons, mass, strict=True)
        },
        divergences=dict(zip(pass_.comparisons, divergences.unbind(-1), strict=True)),
    )


def _tokens_per_chunk(vocabulary: int) -> int:
    """A few less where the logits then find room on the heap, as long as the matrix product stays a broad one."""
    fit = HEAP // vocabulary
    return fit if TOKENS_PER_CHUNK // 2 <= fit < TOKENS_PER_CHUNK else TOKENS_PER_CHUNK


def _dtype(hidden: Tensor) -> torch.dtype | None:
    """What autocast wants the head to run in; None: its own."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@dataclass(frozen=True)
class _SelectedEntries:
    """Of some tokens, what the backward pass of a comparison on chosen entries needs."""

    ids: Tensor
    """[n, k]."""
    top: Tensor
    """[n, k] the student's log-probabilities there."""
    rest: Tensor
    """[n, 1] the log of its probability elsewhere."""
    target: Tensor
    """[n, K] the target on the same entries."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.ids, self.top, self.rest, self.target))

    def at(self, rows: Tensor) -> _SelectedEntries:
        return _SelectedEntries(*(x[rows] for x in self))

    def like(self, tokens: int) -> _SelectedEntries:
        """Room for so many."""
        return _SelectedEntries(*(x.new_empty(tokens, x.shape[-1]) for x in self))

    def put(self, rows: Tensor, part: _SelectedEntries) -> None:
        for all_rows, own in zip(self, part, strict=True):
            all_rows[rows] = own


@dataclass
class _ChunkedHead:
    """One pass over the vocabulary, there and back."""

    head: Head
    teachers: Mapping[str, HiddenStates]
    token_ids: Tensor
    comparisons: tuple[Comparison, ...]
    lexicons: Mapping[str, Tensor]
    tokens_per_chunk: int
    dtype: torch.dtype | None
    weights: tuple[Tensor, ...]
    """What the student's head reads."""
    chosen: dict[int, _SelectedEntries] = field(default_factory=dict)
    """Place of a comparison -> what it keeps; those on the whole vocabulary keep nothing."""
    tail: dict[int, str] = field(default_factory=dict)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities ``[N]``, comparisons ``[N, C]``, facts ``[N, F]``: each teacher's, then the student's but the first."""
        lexicons, tokens = len(self.lexicons), len(hidden)
        # made before the first chunk: small tensors that live on between large ones that come and go would tear the heap
        logprobs, divergences, facts = (
            torch.empty(
                tokens,
                width,
                device=hidden.device,
                dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32,
            )
            for width in (1, len(self.comparisons), len(self.teachers) * (2 + lexicons) + 1 + lexicons)
        )
        for rows in self._chunks(torch.arange(tokens, device=hidden.device)):
            logits, taught = self._logits(self._cast(self.head), hidden[rows]), self._taught(self.teachers, rows)
            for part in self._slices(logits):
                found = self._look(logits[part], {v: z[part] for v, z in taught.items()}, rows[part], tokens)
                logprobs[rows[part]], divergences[rows[part]], facts[rows[part]] = found
            del logits, taught  # before the next ones are made
        return logprobs[:, 0], divergences, facts

    def _look(
        self, logits: Tensor, taught: Mapping[str, Tensor], rows: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids = self.token_ids[rows]
        logp = logits.log_softmax(-1)
        teachers = {context: z.log_softmax(-1) for context, z in taught.items()}
        seen = Distributions(logp, teachers, teachers.get(REF), ids, self.lexicons)
        p, theirs = logp.exp(), {context: q.exp() for context, q in teachers.items()}
        divergences = []
        for place, comparison in enumerate(self.comparisons):
            target = comparison.target(teachers[comparison.context], seen)
            entries = comparison.support(logp, target)
            if entries.ids is None:
                divergences.append(comparison.divergence(logp, target))
                continue
            unedited = target is teachers[comparison.context]
            q = theirs[comparison.context] if unedited else target.exp()
            goal = joined(*_split(target, q, entries.ids), entries.tail)
            chosen = _SelectedEntries(entries.ids, *_split(logp, p, entries.ids), goal)
            divergences.append(comparison.divergence(joined(chosen.top, chosen.rest, entries.tail), goal))
            if place not in self.chosen:
                self.chosen[place], self.tail[place] = chosen.like(tokens), entries.tail
            self.chosen[place].put(rows, chosen)
        facts = [fact for context, q in teachers.items() for fact in self._facts(q, theirs[context], ids)]
        logprob, *own = self._facts(logp, p, ids)
        columns = torch.stack(divergences, -1) if divergences else logp.new_zeros(len(logp), 0)
        return logprob[:, None], columns, torch.stack([*facts, *own], -1)

    def _facts(self, logp: Tensor, p: Tensor, ids: Tensor) -> list[Tensor]:
        """Log-probability of the token, entropy, log mass of each lexicon's markers; ``p`` is used up."""
        masses = [logp[:, m].logsumexp(-1) for m in self.lexicons.values()]
        # in nats; 0 log 0, which is nan in floating point, counts as 0
        return [logp.gather(-1, ids[:, None])[:, 0], -p.mul_(logp).nansum(-1), *masses]

    def backward(
        self, hidden: Tensor, wanted: Sequence[bool], logprobs: Tensor, divergences: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states, weight and bias, from those of the log-probabilities ``[N]`` and comparisons ``[N, C]``."""
        head = self._cast(self.head)
        d_hidden = torch.zeros_like(hidden) if wanted[0] else None
        d_weight = torch.zeros_like(self.head.weight) if self.head.weight is not None and wanted[1] else None
        d_bias = torch.zeros_like(self.head.bias) if self.head.bias is not None and wanted[2] else None
        active = ((logprobs != 0) | (divergences != 0).any(-1)).nonzero()[:, 0]
        for rows in self._chunks(active):
            states = hidden[rows]
            logits, taught = self._logits(head, states), self._taught(self._compared, rows)
            for part in self._slices(logits):
                self._differentiate(
                    logits[part], {v: z[part] for v, z in taught.items()}, rows[part], logprobs, divergences
                )
            inner = logits if head.weight is None else logits.to(head.weight.dtype)
            if d_hidden is not None:
                d_hidden[rows] = (inner if head.weight is None else inner @ head.weight).to(hidden.dtype)
            if d_weight is not None:
                _add_product(d_weight, inner.T, states.to(inner.dtype))
            if d_bias is not None:
                d_bias += logits.sum(0)
            del logits, taught, inner
        return d_hidden, d_weight, d_bias

    def _differentiate(
        self, logits: Tensor, taught: Mapping[str, Tensor], rows: Tensor, logprobs: Tensor, divergences: Tensor
    ) -> None:
        """Writes the gradient on ``weight h + bias`` over the logits."""
        ids, given = self.token_ids[rows], {i: divergences[rows, i] for i in range(len(self.comparisons))}
        p = logits.softmax(-1)
        own = logprobs[rows]
        inner = {i: self._on_entries(i, c.at(rows), given[i]) for i, c in self.chosen.items()}
        gradient = p * -(own + sum(top.sum(-1) + rest[:, 0] for _, top, rest in inner.values()))[:, None]
        gradient.scatter_add_(-1, ids[:, None], own[:, None])
        for chosen, top, rest in inner.values():
            gradient.scatter_add_(-1, chosen.ids, top)
            inside = p.gather(-1, chosen.ids)
            gradient.addcmul_(p.scatter_(-1, chosen.ids, 0.0), rest * (-chosen.rest).exp())
            p.scatter_(-1, chosen.ids, inside)
        dense = [i for i in given if i not in self.chosen]
        if dense:
            gradient += self._on_everything(dense, logits, taught, ids, [given[i] for i in dense])
        if self.head.watch is not None:
            self.head.watch(rows, logits, gradient)
        logits.copy_(self.head.through(logits, gradient))

    def _on_entries(
        self, place: int, chosen: _SelectedEntries, given: Tensor
    ) -> tuple[_SelectedEntries, Tensor, Tensor]:
        """Gradients on the student's log-probabilities at the entries ``[n, k]`` and on that of the rest ``[n, 1]``."""
        with torch.enable_grad():
            top, rest = (x.detach().requires_grad_() for x in (chosen.top, chosen.rest))
            value = self.comparisons[place].divergence(joined(top, rest, self.tail[place]), chosen.target)
            d_top, d_rest = torch.autograd.grad(value, [top, rest], given, allow_unused=True)
        zeros = torch.zeros_like
        return chosen, zeros(top) if d_top is None else d_top, zeros(rest) if d_rest is None else d_rest

    def _on_everything(
        self, places: Sequence[int], logits: Tensor, taught: Mapping[str, Tensor], ids: Tensor, given: Sequence[Tensor]
    ) -> Tensor:
        teachers = {context: z.log_softmax(-1) for context, z in taught.items()}
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            logp = leaf.log_softmax(-1)
            seen = Distributions(logp.detach(), teachers, teachers.get(REF), ids, self.lexicons)
            values = [self.comparisons[i](logp, seen) for i in places]
            return torch.autograd.grad(values, leaf, list(given))[0]

    @property
    def _compared(self) -> Mapping[str, HiddenStates]:
        """The teachers read again in the backward pass; a target other than the teacher itself may look at any context."""
        dense = [c for i, c in enumerate(self.comparisons) if i not in self.chosen]
        edited = any(c.target is not identity for c in dense)
        return {
            context: s for context, s in self.teachers.items() if edited or any(c.context == context for c in dense)
        }

    def _taught(self, teachers: Mapping[str, HiddenStates], rows: Tensor) -> dict[str, Tensor]:
        return {context: self._logits(self._cast(s.head), s.hidden[rows]) for context, s in teachers.items()}

    def _logits(self, head: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        """float32 whatever the model runs in: bf16 log-probabilities are off by up to 1 %."""
        logits = head(hidden)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def _cast(self, head: Any) -> Any:
        """Once a pass rather than once a chunk."""
        if self.dtype is None or not isinstance(head, Head) or head.weight is None:
            return head
        key = id(head.weight)
        if key not in self._casts:
            bias = None if head.bias is None else head.bias.to(self.dtype)
            self._casts[key] = replace(head, weight=head.weight.to(self.dtype), bias=bias)
        return self._casts[key]

    _casts: dict[int, Head] = field(default_factory=dict)

    def _chunks(self, rows: Tensor) -> Iterator[Tensor]:
        yield from rows.split(self.tokens_per_chunk)

    def _slices(self, logits: Tensor) -> Iterator[slice]:
        rows = max(1, SLICE.get(logits.device.type, SLICE["cpu"]) // logits.shape[-1])
        return (slice(i, i + rows) for i in range(0, max(len(logits), 1), rows))


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pass_: _ChunkedHead, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            logprobs, divergences, facts = pass_.forward(hidden)
        ctx.pass_ = pass_
        ctx.save_for_backward(hidden)
        ctx.mark_non_differentiable(facts)
        pass_._casts.clear()
        return logprobs, divergences, facts

    @staticmethod
    def backward(
        ctx: Any, logprobs: Tensor, divergences: Tensor, facts: Tensor
    ) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        (hidden,) = ctx.saved_tensors
        read_again = [w for taught in ctx.pass_._compared.values() for w in taught.weights]
        with torch.autocast(hidden.device.type, enabled=False), whole(*ctx.pass_.weights, *read_again):
            gradients = ctx.pass_.backward(hidden, ctx.needs_input_grad[1:], logprobs, divergences)
        ctx.pass_._casts.clear()
        return None, *gradients


def _split(logprobs: Tensor, p: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities at the entries ``[n, k]`` and of everything else together ``[n, 1]``; ``p`` is left as it was."""
    inside = p.gather(-1, ids)
    outside = p.scatter_(-1, ids, 0.0).sum(-1, keepdim=True).log().clamp(min=LEAST)
    p.scatter_(-1, ids, inside)
    return logprobs.gather(-1, ids), outside


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, without a second tensor of its size where the types agree."""
    if one.dtype == total.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other
