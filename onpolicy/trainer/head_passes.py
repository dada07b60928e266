"""The forward and the backward pass of the chunked head. Within a chunk everything but the matrix product is done on slices that
stay in the processor's cache.

In the backward pass a comparison on selected entries needs neither the teacher nor automatic differentiation over the
vocabulary. With p the student's softmax, R = log of the probability outside the entries E,

    d log p_i / dz_j = [i = j] - p_j
    d R / dz_j       = [j not in E] p_j exp(-R) - p_j

and tokens whose loss has no gradient are skipped. At a temperature T all of this holds for z / T, and the gradient on z is 1 / T
of it. A comparison on the whole vocabulary is differentiated by torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onpolicy.losses.comparison import Comparison, Distributions
from onpolicy.losses.supports import joined
from onpolicy.losses.targets import identity
from onpolicy.trainer.head import Head, HiddenStates, in_float32
from onpolicy.types import REF

LOGITS_PER_SLICE = {"cpu": 4_000_000, "cuda": 64_000_000}
"""Few enough to stay in cache, and below 32 MB, above which every new tensor costs the CPU page faults."""
MIN_REST_LOGPROB = -80.0
"""The log-probability outside the selected entries is clamped here: exp(80) is the last that float32 holds with a margin."""


@dataclass(frozen=True)
class HeadRequest:
    """The arguments of ``token_stats``, which the backward pass needs again."""

    head: Head
    weights: tuple[Tensor, ...]
    teachers: Mapping[str, HiddenStates]
    token_ids: Tensor
    comparisons: tuple[Comparison, ...]
    temperatures: tuple[float, ...]
    """1 and those other than 1."""
    lexicons: Mapping[str, Tensor]
    tokens_per_chunk: int
    logits_per_slice: int
    dtype: torch.dtype | None

    def comparisons_at(self, temperature: float) -> Iterator[tuple[int, Comparison]]:
        return ((i, c) for i, c in enumerate(self.comparisons) if c.temperature == temperature)

    def distributions(self, student: Tensor, teachers: Mapping[str, Tensor], rows: Tensor) -> Distributions:
        return Distributions(student, teachers, teachers.get(REF), self.token_ids[rows], self.lexicons)


@dataclass(frozen=True)
class SelectedEntries:
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

    def at(self, rows: Tensor) -> SelectedEntries:
        return SelectedEntries(self.tail, *(x[rows] for x in self.tensors))

    def empty(self, tokens: int) -> SelectedEntries:
        """Uninitialised tensors of the same widths for so many tokens."""
        return SelectedEntries(self.tail, *(x.new_empty(tokens, x.shape[-1]) for x in self.tensors))

    def put(self, rows: Tensor, part: SelectedEntries) -> None:
        for all_rows, own in zip(self.tensors, part.tensors, strict=True):
            all_rows[rows] = own


class HeadPass:
    """One pass over the logits of student and teachers, chunk by chunk. Heads cast for autocast live as long as the pass."""

    def __init__(self, request: HeadRequest) -> None:
        self.request = request
        self._casts: dict[int, Head] = {}

    def chunks(self, rows: Tensor) -> Iterator[Tensor]:
        yield from rows.split(self.request.tokens_per_chunk)

    def slices(self, logits: Tensor) -> Iterator[slice]:
        rows = max(1, self.request.logits_per_slice // logits.shape[-1])
        return (slice(i, i + rows) for i in range(0, max(len(logits), 1), rows))

    def student_logits(self, hidden: Tensor) -> Tensor:
        return in_float32(self.cast(self.request.head).logits(hidden))

    def teacher_logits(self, teachers: Mapping[str, HiddenStates], rows: Tensor) -> dict[str, Tensor]:
        return {
            context: in_float32(states.head.mapped(self.cast).logits(states.hidden[rows]))
            for context, states in teachers.items()
        }

    def cast(self, head: Head) -> Head:
        """Once a pass rather than once a chunk."""
        dtype = self.request.dtype
        if dtype is None or head.weight is None:
            return head
        key = id(head.weight)
        if key not in self._casts:
            bias = None if head.bias is None else head.bias.to(dtype)
            self._casts[key] = replace(head, weight=head.weight.to(dtype), bias=bias)
        return self._casts[key]


class ForwardPass(HeadPass):
    """Per-token numbers, and what the backward pass needs of each comparison on selected entries."""

    def __init__(self, request: HeadRequest) -> None:
        super().__init__(request)
        self.selected: dict[int, SelectedEntries] = {}
        """Index of a comparison -> its entries; comparisons on the whole vocabulary keep nothing."""

    def run(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities ``[N, temperatures]``, comparisons ``[N, C]``, statistics ``[N, F]``.

        Statistics are, for each temperature, each teacher's log-probability and entropy and the student's entropy; then the marker
        mass of each teacher and of the student in each lexicon.
        """
        tokens, teachers = len(hidden), len(self.request.teachers)
        temperatures, lexicons = len(self.request.temperatures), len(self.request.lexicons)
        statistics = temperatures * (2 * teachers + 1) + lexicons * (teachers + 1)
        # allocated before the first chunk: small tensors that outlive large ones would fragment the heap
        logprobs, divergences, stats = (
            torch.empty(
                tokens,
                width,
                device=hidden.device,
                dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32,
            )
            for width in (temperatures, len(self.request.comparisons), statistics)
        )
        for rows in self.chunks(torch.arange(tokens, device=hidden.device)):
            logits, theirs = self.student_logits(hidden[rows]), self.teacher_logits(self.request.teachers, rows)
            for part in self.slices(logits):
                found = self._forward_slice(logits[part], {c: z[part] for c, z in theirs.items()}, rows[part], tokens)
                logprobs[rows[part]], divergences[rows[part]], stats[rows[part]] = found
            del logits, theirs  # before the next ones are made
        return logprobs, divergences, stats

    def _forward_slice(
        self, logits: Tensor, theirs: Mapping[str, Tensor], rows: Tensor, tokens: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs: list[Tensor] = []
        stats: list[Tensor] = []
        divergences: dict[int, Tensor] = {}
        masses = self._masses(logits, theirs)
        for temperature in self.request.temperatures:
            scaled = {context: _divided(z, temperature) for context, z in theirs.items()}
            logprob, own, found = self._at_temperature(_divided(logits, temperature), scaled, rows, tokens, temperature)
            logprobs, stats, divergences = [*logprobs, logprob], [*stats, *own], divergences | found
        columns = [divergences[i] for i in range(len(divergences))]
        return (
            torch.stack(logprobs, -1),
            torch.stack(columns, -1) if columns else logits.new_zeros(len(logits), 0),
            torch.stack([*stats, *masses], -1),
        )

    def _masses(self, logits: Tensor, theirs: Mapping[str, Tensor]) -> list[Tensor]:
        """Log of the probability of each lexicon's markers, by teacher and then by the student, from undivided logits."""
        if not self.request.lexicons:
            return []
        return [
            z[:, ids].logsumexp(-1) - total
            for z in (*theirs.values(), logits)
            for total in [z.logsumexp(-1)]
            for ids in self.request.lexicons.values()
        ]

    def _at_temperature(
        self, logits: Tensor, theirs: Mapping[str, Tensor], rows: Tensor, tokens: int, temperature: float
    ) -> tuple[Tensor, list[Tensor], dict[int, Tensor]]:
        """Log-probability of the token, statistics, and the comparisons at this temperature by index, from the divided logits."""
        ids = self.request.token_ids[rows]
        logp = logits.log_softmax(-1)
        teachers = {context: z.log_softmax(-1) for context, z in theirs.items()}
        seen = self.request.distributions(logp, teachers, rows)
        p, q_of = logp.exp(), {context: logq.exp() for context, logq in teachers.items()}
        divergences = {}
        for index, comparison in self.request.comparisons_at(temperature):
            target = comparison.target(teachers[comparison.context], seen)
            entries = comparison.support(logp, target)
            if entries.ids is None:
                divergences[index] = comparison.divergence(logp, target)
                continue
            unedited = target is teachers[comparison.context]
            q = q_of[comparison.context] if unedited else target.exp()
            on_entries = joined(*_split(target, q, entries.ids), entries.tail)
            selected = SelectedEntries(entries.tail, entries.ids, *_split(logp, p, entries.ids), on_entries)
            divergences[index] = comparison.divergence(joined(selected.top, selected.rest, entries.tail), on_entries)
            if index not in self.selected:
                self.selected[index] = selected.empty(tokens)
            self.selected[index].put(rows, selected)
        stats = [stat for context, logq in teachers.items() for stat in _stats(logq, q_of[context], ids)]
        logprob, entropy = _stats(logp, p, ids)
        return logprob, [*stats, entropy], divergences


class BackwardPass(HeadPass):
    """Gradients of hidden states, weight and bias."""

    def __init__(self, request: HeadRequest, selected: Mapping[int, SelectedEntries]) -> None:
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
        """From the gradients on the log-probabilities ``[N, temperatures]`` and the comparisons ``[N, C]``.

        Args:
            hidden: [N, H]
            needed: whether hidden states, weight and bias need a gradient
        """
        plain, head, teachers = self.request.head, self.cast(self.request.head), self.teachers
        d_hidden = torch.zeros_like(hidden) if needed[0] else None
        d_weight = torch.zeros_like(plain.weight) if plain.weight is not None and needed[1] else None
        d_bias = torch.zeros_like(plain.bias) if plain.bias is not None and needed[2] else None
        active = ((logprobs != 0).any(-1) | (divergences != 0).any(-1)).nonzero()[:, 0]
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
        gradient: Tensor | None = None
        for index, temperature in enumerate(self.request.temperatures):
            scaled = {context: _divided(z, temperature) for context, z in theirs.items()}
            given = d_logprobs[:, index], d_divergences
            own = self._at_temperature(_divided(logits, temperature), scaled, rows, *given, temperature)
            own = own if temperature == 1.0 else own / temperature
            gradient = own if gradient is None else gradient.add_(own)
        assert gradient is not None
        if self.request.head.on_gradient is not None:
            self.request.head.on_gradient(rows, logits, gradient)
        logits.copy_(self.request.head.linear_gradient(logits, gradient))

    def _at_temperature(
        self,
        logits: Tensor,
        theirs: Mapping[str, Tensor],
        rows: Tensor,
        d_logprobs: Tensor,
        d_divergences: Tensor,
        temperature: float,
    ) -> Tensor:
        """The gradient on the divided logits ``[n, V]`` of what was computed from them at this temperature."""
        p, ids = logits.softmax(-1), self.request.token_ids[rows]
        at_this = dict(self.request.comparisons_at(temperature))
        inner = {
            i: self._on_entries(i, s.at(rows), d_divergences[:, i]) for i, s in self.selected.items() if i in at_this
        }
        gradient = p * -(d_logprobs + sum(top.sum(-1) + rest[:, 0] for _, top, rest in inner.values()))[:, None]
        gradient.scatter_add_(-1, ids[:, None], d_logprobs[:, None])
        for selected, top, rest in inner.values():
            gradient.scatter_add_(-1, selected.ids, top)
            inside = p.gather(-1, selected.ids)
            gradient.addcmul_(p.scatter_(-1, selected.ids, 0.0), rest * (-selected.rest).exp())
            p.scatter_(-1, selected.ids, inside)
        if dense := [i for i in self.dense if i in at_this]:
            gradient += self._on_vocabulary(logits, theirs, rows, d_divergences, dense)
        return gradient

    def _on_entries(
        self, index: int, selected: SelectedEntries, given: Tensor
    ) -> tuple[SelectedEntries, Tensor, Tensor]:
        """Gradients on the student's log-probabilities at the entries ``[n, k]`` and on that of the rest ``[n, 1]``."""
        with torch.enable_grad():
            top, rest = (x.detach().requires_grad_() for x in (selected.top, selected.rest))
            value = self.request.comparisons[index].divergence(joined(top, rest, selected.tail), selected.target)
            d_top, d_rest = torch.autograd.grad(value, [top, rest], given, allow_unused=True)
        zeros = torch.zeros_like
        return selected, zeros(top) if d_top is None else d_top, zeros(rest) if d_rest is None else d_rest

    def _on_vocabulary(
        self, logits: Tensor, theirs: Mapping[str, Tensor], rows: Tensor, given: Tensor, dense: Sequence[int]
    ) -> Tensor:
        """The gradient of the dense comparisons on the logits ``[n, V]``, by torch."""
        teachers = {context: z.log_softmax(-1) for context, z in theirs.items()}
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            logp = leaf.log_softmax(-1)
            seen = self.request.distributions(logp.detach(), teachers, rows)
            values = [self.request.comparisons[i].compare(logp, seen) for i in dense]
            return torch.autograd.grad(values, leaf, [given[:, i] for i in dense])[0]


def _divided(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1.0 else logits / temperature


def _stats(logp: Tensor, p: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the token, and entropy; overwrites ``p``."""
    # in nats; 0 log 0, which is nan in floating point, counts as 0
    return logp.gather(-1, ids[:, None])[:, 0], -p.mul_(logp).nansum(-1)


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
