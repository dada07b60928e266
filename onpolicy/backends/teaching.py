"""The models that teach, beside the student: which they are, what they read, and how they follow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onpolicy.backends.lora import adapted, adapter_off
from onpolicy.distill.vocabulary import START, States
from onpolicy.forward import Layout, completion_states, head_of
from onpolicy.packing import Row, micro_batches
from onpolicy.teachers import WeightRule
from onpolicy.types import Example, TrainBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Taught = Mapping[int, Mapping[str, Tensor]]
"""``id`` of an example -> view or START -> hidden states ``[T, H]``."""


@dataclass(frozen=True)
class Reader:
    """A model that reads, with or without its adapters."""

    model: PreTrainedModel
    adapter: bool = True
    vocabulary: int | None = None
    """Length of the logits wanted, where it is not the model's own."""

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        own, wanted = head_of(self.model), self.vocabulary
        return own if wanted in (None, _vocabulary(self.model)) else lambda hidden: _resized(own(hidden), wanted)

    def plain(self) -> AbstractContextManager[None]:
        return nullcontext() if self.adapter else adapter_off(self.model)


class Teaching:
    """Teacher and start model of one run; neither carries gradient."""

    def __init__(
        self,
        student: PreTrainedModel,
        rule: WeightRule,
        *,
        needs_start: bool,
        layout: Layout,
        other: PreTrainedModel | None = None,
    ) -> None:
        """``other`` teaches where the rule names a model of its own."""
        self.student, self.rule, self.layout = student, rule, layout
        self.still = False
        """Whether the teacher was told to stay as it is."""
        has_adapter = adapted(student)
        if has_adapter and rule.reads_start:
            raise ValueError("teacher: a trust region of weights does not go with adapters; use trust_region_logits")
        still = Reader(student, adapter=False) if has_adapter else None  # the start model, at no cost
        if other is not None:
            self.teacher = Reader(other.requires_grad_(False).eval(), vocabulary=_vocabulary(student))
        elif not rule.copies:
            self.teacher = Reader(student)
        else:
            self.teacher = still if still and rule.update is None else Reader(_copy(student))
        self.start: Reader | None = None
        if needs_start or rule.reads_start:
            unmoved = self.teacher if rule.copies and rule.update is None and other is None else None
            self.start = unmoved or still or Reader(_copy(student))

    def read(self, examples: Sequence[Example], *, budget: int, with_start: bool) -> Taught:
        """What the teacher sees in every view of every rollout, and the start model where it is wanted.

        No graph is kept, so this runs apart from the student's micro-batches: whatever one model reads goes through it
        together, with each privileged prompt once for all rollouts that share it.
        """
        wanted: dict[Reader, list[tuple[int, str, Row]]] = {}
        for i, example in enumerate(examples):
            completion = example.rollout.completion_ids
            for view, prompt in example.teacher_prompt_ids.items():
                for reader in self.readers:
                    wanted.setdefault(reader, []).append((i, view, (prompt, completion)))
            if with_start:
                assert self.start is not None
                wanted.setdefault(self.start, []).append((i, START, (example.rollout.prompt_ids, completion)))
        found: list[dict[str, list[Tensor]]] = [{} for _ in examples]
        for reader, rows in wanted.items():
            for (i, name, _), hidden in zip(rows, self._hidden(reader, [row for *_, row in rows], budget), strict=True):
                found[i].setdefault(name, []).append(hidden)
        return {
            id(example): {name: torch.cat(hidden, -1) for name, hidden in names.items()}
            for example, names in zip(examples, found, strict=True)
        }

    def states(self, batch: TrainBatch, taught: Taught) -> dict[str, States]:
        """By view, and for the start model if it was read, the states at all N sampled tokens; zeros, which the mask hides,
        where a rollout has no context."""
        heads = dict.fromkeys(batch.views, self.head)
        rows = [taught[id(example)] for example in batch.examples]
        if any(START in row for row in rows):
            assert self.start is not None
            heads[START] = self.start.head
        lengths = [len(e.rollout.completion_ids) for e in batch.examples]
        states = {}
        for name, head in heads.items():
            known = next((row[name] for row in rows if name in row), None)
            if known is None:
                width = self.teacher.model.config.get_text_config().hidden_size * len(self.readers)
                known = torch.zeros(1, width, device=batch.response_mask.device)
            parts = [
                row[name] if name in row else known.new_zeros(n, known.shape[-1])
                for row, n in zip(rows, lengths, strict=True)
            ]
            states[name] = States(torch.cat(parts), head)
        return states

    def _hidden(self, reader: Reader, rows: Sequence[Row], budget: int) -> list[Tensor]:
        """By row ``[T, H]``."""
        hidden: list[Tensor] = [torch.zeros(0)] * len(rows)
        for numbers in micro_batches(rows, budget, packed=self.layout == "packed"):
            with reader.plain():
                together = completion_states(reader.model, [rows[i] for i in numbers], layout=self.layout).hidden
            for i, own in zip(numbers, together.split([len(rows[i][1]) for i in numbers]), strict=True):
                hidden[i] = own
        return hidden

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The teacher; and the student, where its logits have a share in the teacher's."""
        return (self.teacher, Reader(self.student)) if self.rule.student_share else (self.teacher,)

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
        starts = dict(self.start.model.named_parameters()) if self.start is not None and self.rule.reads_start else {}
        teacher = dict(self.teacher.model.named_parameters())
        for name, student in self.student.named_parameters():
            if student.requires_grad:
                self.rule.update(teacher[name], student, starts.get(name), step)

    def state(self) -> dict[str, Tensor]:
        """A teacher that moves; the others are read again from where they came."""
        return dict(self.teacher.model.named_parameters()) if self.rule.update is not None else {}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, parameter in self.teacher.model.named_parameters():
            if name in state and self.rule.update is not None:
                parameter.copy_(state[name])


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _resized(logits: Tensor, length: int) -> Tensor:
    """Models of one family pad their vocabularies to different lengths; ids beyond the tokenizer's are never said."""
    missing = length - logits.shape[-1]
    lowest = logits.amin(-1, keepdim=True)  # finite, so that a reverse KL stays finite too
    return logits[..., :length] if missing <= 0 else torch.cat([logits, lowest.expand(*lowest.shape[:-1], missing)], -1)


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(False).eval()
