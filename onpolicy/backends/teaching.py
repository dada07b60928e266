"""The models that teach, beside the student: which they are, what they read, and how they follow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onpolicy.backends.lora import adapted, adapter_off
from onpolicy.distill.vocabulary import START, States
from onpolicy.forward import Layout, completion_states, head_of
from onpolicy.teachers import WeightRule
from onpolicy.types import TeacherView, TrainBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    def states(self, batch: TrainBatch, *, with_start: bool) -> dict[str, States]:
        """By view the teacher's states at all N sampled tokens, and the start model's where it is wanted."""
        readers = [self.teacher] + ([Reader(self.student)] if self.rule.student_share else [])
        states = {
            name: self._blended([self._read(r, batch, view) for r in readers]) for name, view in batch.views.items()
        }
        if with_start:
            assert self.start is not None
            with self.start.plain():
                states[START] = completion_states(
                    self.start.model, batch.input_ids, batch.attention_mask, batch.response_mask, layout=self.layout
                )
        return states

    def _read(self, reader: Reader, batch: TrainBatch, view: TeacherView) -> States:
        """[N, H]; zeros, which the mask hides, where a rollout has no context."""
        width = reader.model.config.get_text_config().hidden_size
        hidden = torch.zeros(int(batch.response_mask.sum()), width, device=batch.input_ids.device)
        if len(view.rows):
            with reader.plain():
                seen = completion_states(
                    reader.model, view.input_ids, view.attention_mask, view.mask[view.rows], layout=self.layout
                )
            hidden = hidden.to(seen.hidden.dtype)
            hidden[view.mask[batch.response_mask]] = seen.hidden
        return States(hidden, reader.head)

    def _blended(self, states: list[States]) -> States:
        """One teacher, or its logits mixed with the student's: both states side by side, and a head that reads both."""
        if len(states) == 1:
            return states[0]
        (first, second), share = states, self.rule.student_share
        width = first.hidden.shape[-1]
        head = lambda h: (1.0 - share) * first.head(h[..., :width]) + share * second.head(h[..., width:])  # noqa: E731
        return States(torch.cat([first.hidden, second.hidden], -1), head)

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
