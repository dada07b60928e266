"""The models that teach, beside the student: which they are, what they read, and how they follow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onpolicy.trainer.chunked_head import HiddenStates
from onpolicy.trainer.collate import select_sampled
from onpolicy.trainer.forward import Layout, completion_states, head_of, head_weights
from onpolicy.trainer.lora import adapted, adapter_off
from onpolicy.trainer.micro_batches import Row, micro_batches
from onpolicy.trainer.teacher_rules import WeightRule
from onpolicy.trainer.zero3 import shard, wholes, written
from onpolicy.types import REF, Example, TrainBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Taught = Mapping[int, Mapping[str, Tensor]]
"""``id`` of an example -> context or REF -> hidden states of its sampled tokens ``[N, H]``."""
Place = Callable[["PreTrainedModel"], Callable[..., Any] | None]
"""Puts a model where it runs; returns what runs it without its head, or None for the model's own body."""


@dataclass(frozen=True)
class ScoringModel:
    """A model that reads, with or without its adapters."""

    model: PreTrainedModel
    adapter: bool = True
    vocabulary: int | None = None
    """Length of the logits wanted, where it is not the model's own."""
    body: Callable[..., Any] | None = None
    """What runs the model without its head; None: the model itself."""

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        own, wanted = head_of(self.model), self.vocabulary
        return own if wanted in (None, _vocabulary(self.model)) else lambda hidden: _resized(own(hidden), wanted)

    def plain(self) -> AbstractContextManager[None]:
        return nullcontext() if self.adapter else adapter_off(self.model)


class TeacherScorer:
    """Teacher and reference model of one run; neither carries gradient."""

    def __init__(
        self,
        student: PreTrainedModel,
        rule: WeightRule,
        *,
        needs_ref: bool,
        layout: Layout,
        other: PreTrainedModel | None = None,
        place: Place = lambda model: None,
        body: Callable[..., Any] | None = None,
        rounds: Callable[[int], int] = int,
    ) -> None:
        """
        Args:
            student: the model that learns
            rule: whose weights teach
            needs_start: whether the objective reads the reference model
            layout: how sequences run together
            other: the model that teaches where the rule names one of its own
            place: puts a model that only reads where it will run; by itself it stays where it is
            body: what runs the student without its head
            rounds: how many forward passes all ranks make where this one needs so many; by itself each makes its own
        """
        self.student, self.rule, self.layout, self.rounds = student, rule, layout, rounds
        self.still = False
        """Whether the teacher was told to stay as it is."""
        has_adapter = adapted(student)
        if has_adapter and rule.reads_ref:
            raise ValueError("teacher: a trust region of weights does not go with adapters; use trust_region_logits")
        still = (
            ScoringModel(student, adapter=False, body=body) if has_adapter else None
        )  # the reference model, at no cost
        self.itself = ScoringModel(student, body=body)

        def copied() -> ScoringModel:
            model = _copy(student)
            return ScoringModel(model, body=place(model))

        if other is not None:
            body = place(other.requires_grad_(False).eval())
            self.teacher = ScoringModel(other, vocabulary=_vocabulary(student), body=body)
        elif not rule.copies:
            self.teacher = self.itself
        else:
            self.teacher = still if still and rule.update is None else copied()
        self.start: ScoringModel | None = None
        if needs_ref or rule.reads_ref:
            unmoved = self.teacher if rule.copies and rule.update is None and other is None else None
            self.start = unmoved or still or copied()

    def read(self, examples: Sequence[Example], *, budget: int, with_ref: bool) -> Taught:
        """What the teacher sees in every context of every rollout, and the reference model where it is wanted.

        No graph is kept, so this runs apart from the student's micro-batches: whatever one model reads goes through it
        together, with each privileged prompt once for all rollouts that share it.
        """
        wanted: dict[ScoringModel, list[tuple[int, str, Row]]] = {reader: [] for reader in self.readers}
        if with_ref:
            assert self.start is not None
            wanted.setdefault(self.start, [])
        for i, example in enumerate(examples):
            completion = example.rollout.completion_ids
            for context, prompt in example.teacher_prompt_ids.items():
                for reader in self.readers:
                    wanted[reader].append((i, context, (prompt, completion)))
            if with_ref:
                assert self.start is not None
                wanted[self.start].append((i, REF, (example.rollout.prompt_ids, completion)))
        found: list[dict[str, list[Tensor]]] = [{} for _ in examples]
        for reader, rows in wanted.items():
            for (i, name, _), hidden in zip(rows, self._hidden(reader, [row for *_, row in rows], budget), strict=True):
                found[i].setdefault(name, []).append(hidden)
        return {
            id(example): {
                name: select_sampled(torch.cat(hidden, -1), [example.rollout]) for name, hidden in names.items()
            }
            for example, names in zip(examples, found, strict=True)
        }

    def tokens(self, examples: Sequence[Example], *, with_ref: bool) -> int:
        """How many tokens ``read`` has scored: prompt and completion of each context of each rollout, once for each model that reads
        them, though a prompt that several rollouts share goes through it once."""
        found = 0
        for example in examples:
            completion = len(example.rollout.completion_ids)
            found += len(self.readers) * sum(len(ids) + completion for ids in example.teacher_prompt_ids.values())
            found += (len(example.rollout.prompt_ids) + completion) * with_ref
        return found

    def states(self, batch: TrainBatch, taught: Taught) -> dict[str, HiddenStates]:
        """By context, and for the reference model if it was read, the states at all N sampled tokens; zeros, which the mask hides,
        where a rollout has no context."""
        heads = dict.fromkeys(
            batch.context_masks, (self.head, tuple(w for r in self.readers for w in head_weights(r.model)))
        )
        rows = [taught[id(example)] for example in batch.examples]
        if any(REF in row for row in rows):
            assert self.start is not None
            heads[REF] = self.start.head, head_weights(self.start.model)
        lengths = [e.rollout.num_sampled for e in batch.examples]
        states = {}
        for name, (head, weights) in heads.items():
            known = next((row[name] for row in rows if name in row), None)
            if known is None:
                width = self.teacher.model.config.get_text_config().hidden_size * len(self.readers)
                known = torch.zeros(1, width, device=batch.sampled_mask.device)
            parts = [
                row[name] if name in row else known.new_zeros(n, known.shape[-1])
                for row, n in zip(rows, lengths, strict=True)
            ]
            states[name] = HiddenStates(torch.cat(parts), head, weights)
        return states

    def _hidden(self, reader: ScoringModel, rows: Sequence[Row], budget: int) -> list[Tensor]:
        """By row ``[T, H]``."""
        hidden: list[Tensor] = [torch.zeros(0)] * len(rows)
        batches = list(micro_batches(rows, budget, packed=self.layout == "packed"))
        for _ in range(self.rounds(len(batches)) - len(batches)):
            self._run(reader, [((0,), (0,))])  # for the sake of the ranks that have more to read
        for numbers in batches:
            together = self._run(reader, [rows[i] for i in numbers])
            for i, own in zip(numbers, together.split([len(rows[i][1]) for i in numbers]), strict=True):
                hidden[i] = own
        return hidden

    def _run(self, reader: ScoringModel, rows: Sequence[Row]) -> Tensor:
        with reader.plain():
            return completion_states(reader.model, rows, layout=self.layout, body=reader.body).hidden

    @property
    def readers(self) -> tuple[ScoringModel, ...]:
        """The teacher; and the student, where its logits have a share in the teacher's."""
        return (self.teacher, self.itself) if self.rule.student_share else (self.teacher,)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Of the readers' states side by side: one teacher's, or its logits mixed with the student's."""
        if len(self.readers) == 1:
            return self.teacher.head
        one, two = (reader.head for reader in self.readers)
        share, width = self.rule.student_share, self.student.config.get_text_config().hidden_size
        return lambda h: (1.0 - share) * one(h[..., :width]) + share * two(h[..., width:])

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After an optimizer step."""
        if self.rule.update is None or self.still:
            return
        starts = dict(self.start.model.named_parameters()) if self.start is not None and self.rule.reads_ref else {}
        teacher = dict(self.teacher.model.named_parameters())
        for name, student in self.student.named_parameters():
            if student.requires_grad:
                start = shard(starts[name]) if name in starts else None
                self.rule.update(shard(teacher[name]), shard(student), start, step)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Of a teacher that moves; the others are read again from where they came."""
        if self.rule.update is not None:
            yield from wholes(self.teacher.model.named_parameters())

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.teacher.model.named_parameters():
            if name in weights and self.rule.update is not None:
                with written(parameter):
                    parameter.copy_(weights[name])


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _resized(logits: Tensor, length: int) -> Tensor:
    """Models of one family pad their vocabularies to different lengths; ids beyond the tokenizer's are never said."""
    missing = length - logits.shape[-1]
    lowest = logits.amin(-1, keepdim=True)  # finite, so that a reverse KL stays finite too
    return logits[..., :length] if missing <= 0 else torch.cat([logits, lowest.expand(*lowest.shape[:-1], missing)], -1)


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(False).eval()
