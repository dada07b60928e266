"""Teacher and reference model: which models they are, what they score, and how the teacher's weights are updated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onpolicy.trainer.collate import select_sampled
from onpolicy.trainer.engine import Engine
from onpolicy.trainer.forward import Layout, completion_hidden
from onpolicy.trainer.forward_settings import Precision
from onpolicy.trainer.frozen_weights import keep_in_bfloat16
from onpolicy.trainer.head import Head, HeadLike, HiddenStates, head_of, head_weights, in_float32
from onpolicy.trainer.lora import adapted, adapter_off, merged_weights
from onpolicy.trainer.micro_batches import Row, micro_batches
from onpolicy.trainer.teacher_rules import Update, WeightRule
from onpolicy.trainer.zero3 import full_tensors, gathered_for_write, local_shard
from onpolicy.types import REF, Example, TrainBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TeacherHidden = Mapping[str, Tensor]
"""What is scored of one rollout: context or REF -> hidden states ``[T, H]`` that predict its completion tokens, in the dtype in which
bodies and heads compute."""


@dataclass(frozen=True)
class ScoringModel:
    """A model that scores completions, with or without its adapters."""

    model: PreTrainedModel
    adapter: bool = True
    vocabulary: int | None = None
    """Length of the logits, if it differs from the model's own."""
    body: Callable[..., Any] | None = None
    """Runs the model without its head; None: the model itself."""

    @property
    def head(self) -> HeadLike:
        with torch.no_grad(), self.adapters():
            own, length = head_of(self.model), self.vocabulary
        return own if length is None or length == _vocabulary(self.model) else ResizedHead(own, length)

    def adapters(self) -> AbstractContextManager[None]:
        """Inside, the model's adapters are on or off as ``adapter`` says."""
        return nullcontext() if self.adapter else adapter_off(self.model)


@dataclass(frozen=True)
class ResizedHead:
    """A head whose logits are cut, or filled up, to the student's length.

    Models of one family pad their vocabularies to different lengths; the tokenizer never produces the ids beyond its own.
    """

    head: HeadLike
    length: int

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.head.logits(hidden)
        missing = self.length - logits.shape[-1]
        if missing <= 0:
            return logits[..., : self.length]
        lowest = logits.amin(-1, keepdim=True)  # finite, so that a reverse KL stays finite too
        return torch.cat([logits, lowest.expand(*lowest.shape[:-1], missing)], -1)

    def mapped(self, function: Callable[[Head], Head]) -> ResizedHead:
        return replace(self, head=self.head.mapped(function))


@dataclass(frozen=True)
class MixedHead:
    """(1 - share) teacher logits + share student logits, from their hidden states side by side ``[..., H_teacher + H_student]``."""

    teacher: HeadLike
    student: HeadLike
    share: float
    width: int
    """H_teacher."""

    def logits(self, hidden: Tensor) -> Tensor:
        teacher, student = hidden[..., : self.width], hidden[..., self.width :]
        one, other = in_float32(self.teacher.logits(teacher)), in_float32(self.student.logits(student))
        return (1.0 - self.share) * one + self.share * other

    def mapped(self, function: Callable[[Head], Head]) -> MixedHead:
        return replace(self, teacher=self.teacher.mapped(function), student=self.student.mapped(function))


class TeacherScorer:
    """Teacher and reference model of one run; neither carries gradient."""

    def __init__(
        self,
        student: PreTrainedModel,
        rule: WeightRule,
        engine: Engine,
        *,
        layout: Layout,
        needs_ref: bool,
        teacher_model: PreTrainedModel | None = None,
    ) -> None:
        """
        Args:
            student: the model that is trained
            rule: which weights the teacher has
            engine: places the models that have no gradient, and runs the student
            layout: how sequences run together
            needs_ref: whether the objective reads the reference model
            teacher_model: the teacher, if the rule names a model of its own

        Raises:
            ValueError: a trust region of weights under adapters.
        """
        self.student, self.rule, self.layout, self.engine = student, rule, layout, engine
        self.frozen = False
        """Whether the teacher's weights are no longer updated."""
        has_adapter = adapted(student)
        if has_adapter and rule.reads_ref:
            raise ValueError("teacher: a trust region of weights does not go with adapters; use trust_region_logits")
        # without its adapters the student is the reference model, at no cost
        base = ScoringModel(student, adapter=False, body=engine.body) if has_adapter else None
        self.student_reader = ScoringModel(student, body=engine.body)

        self.frozen_weights: list[Precision] = []
        """Of each model that never changes, what its matrices are kept in under bfloat16."""
        if teacher_model is not None:
            placed = self._placed(teacher_model.requires_grad_(False).eval(), fixed=True)
            self.teacher = replace(placed, vocabulary=_vocabulary(student))
        elif not rule.copies:
            self.teacher = self.student_reader
        elif base and rule.update is None:
            self.teacher = base
        else:
            self.teacher = self._placed(self._copy_of_student(), fixed=rule.update is None)
        self.reference: ScoringModel | None = None
        if needs_ref or rule.reads_ref:
            unmoved = self.teacher if rule.copies and rule.update is None and teacher_model is None else None
            # a rule that reads its tensors may do anything with them
            self.reference = unmoved or base or self._placed(self._copy_of_student(), fixed=not rule.reads_ref)

    def _copy_of_student(self) -> PreTrainedModel:
        """Another model with the student's weights, before either is placed; where that copies them anyway, they share them until then."""
        parameters = (p for p in self.student.parameters() if self.engine.copies(p))
        shared: dict[int, Any] = {id(p): nn.Parameter(p.data) for p in parameters}
        return copy.deepcopy(self.student, shared).requires_grad_(False).eval()

    def _placed(self, model: PreTrainedModel, *, fixed: bool) -> ScoringModel:
        """The model where it runs; if its weights never change, in as few bytes as compute the same."""
        body = self.engine.prepare_frozen(model)
        if fixed and self.engine.precision == "bfloat16":
            kept = keep_in_bfloat16(model, body, layout=self.layout)
            self.frozen_weights.append("bfloat16" if kept else "float32")
        return ScoringModel(model, body=body)

    def score(self, examples: Sequence[Example], *, budget: int, with_ref: bool) -> list[TeacherHidden]:
        """The hidden states of the teacher in every context of every rollout, and of the reference model if requested.

        No graph is kept, so this runs apart from the student's micro-batches: each model reads all its rows together, and
        a privileged prompt that several rollouts share runs once.

        Returns:
            one entry per example, in order
        """
        requests: dict[ScoringModel, list[tuple[int, str, Row]]] = {reader: [] for reader in self.readers}
        if with_ref:
            assert self.reference is not None
            requests.setdefault(self.reference, [])
        for i, example in enumerate(examples):
            completion = example.rollout.completion_ids
            for context, prompt in example.teacher_prompt_ids.items():
                for reader in self.readers:
                    requests[reader].append((i, context, (prompt, completion)))
            if with_ref:
                assert self.reference is not None
                requests[self.reference].append((i, REF, (example.rollout.prompt_ids, completion)))
        found: list[dict[str, list[Tensor]]] = [{} for _ in examples]
        for reader, rows in requests.items():
            for (i, name, _), hidden in zip(rows, self._hidden(reader, [row for *_, row in rows], budget), strict=True):
                found[i].setdefault(name, []).append(hidden)
        return [
            {name: select_sampled(torch.cat(hidden, -1), [example.rollout]) for name, hidden in names.items()}
            for example, names in zip(examples, found, strict=True)
        ]

    def tokens(self, examples: Sequence[Example], *, with_ref: bool) -> int:
        """How many tokens ``score`` reads: prompt and completion of each context of each rollout, once per model that reads them,
        although a prompt that several rollouts share runs once, and a model may read an update twice (``TeacherWindows``)."""
        found = 0
        for example in examples:
            completion = len(example.rollout.completion_ids)
            found += len(self.readers) * sum(len(ids) + completion for ids in example.teacher_prompt_ids.values())
            found += (len(example.rollout.prompt_ids) + completion) * with_ref
        return found

    def states(self, batch: TrainBatch, hidden: Sequence[TeacherHidden]) -> dict[str, HiddenStates]:
        """By context, and for the reference model if it was scored, the hidden states at all N sampled tokens of a micro-batch.

        Args:
            batch: B rollouts
            hidden: B entries of ``score``; where a rollout lacks a context the result is 0, which the context's mask hides
        """
        heads = dict.fromkeys(
            batch.context_masks, (self.head, tuple(w for r in self.readers for w in head_weights(r.model)))
        )
        if any(REF in row for row in hidden):
            assert self.reference is not None
            heads[REF] = self.reference.head, head_weights(self.reference.model)
        lengths = [e.rollout.num_sampled for e in batch.examples]
        states = {}
        for name, (head, weights) in heads.items():
            known = next((row[name] for row in hidden if name in row), None)
            if known is None:
                width = _width(self.teacher.model) * len(self.readers)
                known = torch.zeros(1, width, device=batch.sampled_mask.device)
            parts = [
                row[name] if name in row else known.new_zeros(n, known.shape[-1])
                for row, n in zip(hidden, lengths, strict=True)
            ]
            states[name] = HiddenStates(torch.cat(parts), head, weights)
        return states

    def _hidden(self, reader: ScoringModel, rows: Sequence[Row], budget: int) -> list[Tensor]:
        """By row ``[T, H]``."""
        hidden: list[Tensor] = [torch.zeros(0)] * len(rows)
        batches = list(micro_batches(rows, budget, packed=self.layout == "packed", together=True))
        for _ in range(self.engine.collectives.max_passes(len(batches)) - len(batches)):
            self._run(reader, [((0,), (0,))])  # takes part in the collectives of ranks that have more to score
        for indices in batches:
            states = self._run(reader, [rows[i] for i in indices])
            for i, own in zip(indices, states.split([len(rows[i][1]) for i in indices]), strict=True):
                hidden[i] = own
        return hidden

    def _run(self, reader: ScoringModel, rows: Sequence[Row]) -> Tensor:
        """``[N, H]``, in the dtype to which the head would round it: the residual stream is float32 whatever the layers run in."""
        with reader.adapters():
            hidden = completion_hidden(reader.model, rows, layout=self.layout, body=reader.body)
        return hidden.to(torch.bfloat16) if self.engine.precision == "bfloat16" else hidden

    @property
    def readers(self) -> tuple[ScoringModel, ...]:
        """The teacher; and the student, if the rule mixes its logits with the teacher's."""
        return (self.teacher, self.student_reader) if self.rule.student_share else (self.teacher,)

    @property
    def head(self) -> HeadLike:
        """The head over the readers' hidden states side by side."""
        if len(self.readers) == 1:
            return self.teacher.head
        return MixedHead(self.teacher.head, self.student_reader.head, self.rule.student_share, _width(self.student))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Applies the rule after optimizer step ``step``, unless the teacher is frozen."""
        if self.rule.update is None or self.frozen:
            return
        if adapted(self.student):
            self._update_merged(self.rule.update, step)
            return
        reads_ref = self.reference is not None and self.rule.reads_ref
        reference = dict(self.reference.model.named_parameters()) if self.reference is not None and reads_ref else {}
        teacher = dict(self.teacher.model.named_parameters())
        for name, student in self.student.named_parameters():
            if student.requires_grad:
                ref = local_shard(reference[name]) if name in reference else None
                self.rule.update(local_shard(teacher[name]), local_shard(student), ref, step)

    def _update_merged(self, update: Update, step: int) -> None:
        """Applies the rule to the sums of weights and adapters: the mean of A's times that of B's is not the mean of their products. The
        teacher keeps the sums in its base weights; its own adapters stay at 0."""
        teacher = {name.replace(".base_layer", ""): p for name, p in self.teacher.model.named_parameters()}
        for name, student in self.engine.each(merged_weights(self.student, only_adapted=True)):
            if name in teacher:  # a tied matrix has two names and is one parameter
                with gathered_for_write(teacher[name]):
                    update(teacher[name], student, None, step)

    def moving(self) -> Iterator[nn.Parameter]:
        """The parameters of a teacher that is updated."""
        return self.teacher.model.parameters() if self.rule.update is not None else iter(())

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights of a teacher that is updated; the others are loaded again from their source."""
        if self.rule.update is not None:
            yield from full_tensors(self.teacher.model.named_parameters())

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.engine.each(self.teacher.model.named_parameters()):
            if name in weights and self.rule.update is not None:
                with gathered_for_write(parameter):
                    parameter.copy_(weights[name])


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _width(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().hidden_size)
