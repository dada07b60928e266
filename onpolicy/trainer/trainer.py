"""The trainer: a step's rollouts to a new student, whatever engine holds the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor

from onpolicy.config.bounds import NOT_NEGATIVE, POSITIVE
from onpolicy.config.schema import TrainerSettings
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.objective import MetricAccumulator, Objective
from onpolicy.trainer import prefix_sharing
from onpolicy.trainer.batching import Batching, default_budget, num_tokens, student_rows
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.collate import select_sampled
from onpolicy.trainer.engine import Engine, TorchEngine
from onpolicy.trainer.export import ModelExport
from onpolicy.trainer.forward import Layout, completion_states
from onpolicy.trainer.forward_settings import ForwardReport, ForwardSettings, Precision
from onpolicy.trainer.head import HiddenStates
from onpolicy.trainer.learning_rate import lr_factor
from onpolicy.trainer.lora import LoraSettings, adapted, adapter_weights, add_adapter, merged_weights
from onpolicy.trainer.loss_inputs import loss_inputs, observe, stacked
from onpolicy.trainer.moments import Moments
from onpolicy.trainer.recompute import recomputable_layers, recompute_layers
from onpolicy.trainer.saving import TrainerFiles
from onpolicy.trainer.student_weights import StudentWeights
from onpolicy.trainer.teacher import TeacherHidden, TeacherScorer
from onpolicy.trainer.teacher_rules import WeightRule
from onpolicy.trainer.totals import has_tokens, update_totals
from onpolicy.trainer.windows import MicroBatch, TeacherWindows, in_step
from onpolicy.trainer.zero3 import whole_weights
from onpolicy.types import Example, LossInputs, Metrics, TrainBatch
from onpolicy.utils.device import device_name
from onpolicy.utils.device_sums import exact_dtype
from onpolicy.utils.timer import PhaseTimer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NO_GRAPH_FACTOR = 4
"""Without a graph a token needs memory for one layer at a time: so many times the budget is read in one pass."""


@dataclass(frozen=True, kw_only=True)
class TrainerSetup:
    """What a run gives its trainer, whatever the engine: a plug-in of kind `trainer` gets it as ``setup``."""

    student: PreTrainedModel
    objective: Objective
    rule: WeightRule
    """Which weights the teacher has."""
    settings: TrainerSettings
    total_steps: int
    contexts: Sequence[str]
    clock: PhaseTimer
    spans: Sequence[str] = ()
    """Names under which completion tokens are marked."""
    marker_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Lexicon -> ids of its markers that are one token."""
    teacher_model: PreTrainedModel | None = None
    """The model that teaches if the rule names one of its own."""
    telemetry: TokenTelemetry | None = None
    seed: int = 0
    """The run's: of the first values of adapters."""
    export: ModelExport | None = None
    """Writes the student as a Hugging Face folder."""


class PolicyTrainer:
    """Student, teacher and objective over an engine; weights and optimizer in float32."""

    on_fault: Callable[[str, str], None] = staticmethod(lambda role, what: None)
    """Called with a role and a description for each fault that the trainer has recovered from."""

    def __init__(
        self,
        setup: TrainerSetup,
        engine: Engine,
        forward: ForwardSettings,
        lora: LoraSettings,
    ) -> None:
        self.engine, self.collectives = engine, engine.collectives
        self.student = setup.student.to(torch.float32).eval()  # no dropout: teacher = student must give exactly 0
        self.objective, self.rule, self.settings = setup.objective, setup.rule, setup.settings
        self.clock, self.telemetry = setup.clock, setup.telemetry
        engine.alive = lambda: self.clock.on_progress()
        self.layout = choose_layout(forward.layout, *(m for m in (setup.student, setup.teacher_model) if m is not None))
        self.forward_report = _report(forward, engine, can_recompute=bool(recomputable_layers(self.student)))
        engine.precision = self.forward_report.precision
        if self.forward_report.settings.gradient_checkpointing:
            recompute_layers(self.student)
        add_adapter(self.student, lora, seed=setup.seed)
        self.teacher_scorer = TeacherScorer(
            self.student,
            self.rule,
            engine,
            layout=self.layout,
            needs_ref=self.objective.needs_ref,
            teacher_model=None if setup.teacher_model is None else setup.teacher_model.to(torch.float32),
        )
        self.forward_report = replace(self.forward_report, frozen_weights=tuple(self.teacher_scorer.frozen_weights))
        self.marker_ids = {name: torch.tensor(ids, device=self.device) for name, ids in setup.marker_ids.items()}
        engine.prepare_student(self.student)
        self.files = TrainerFiles(self.student, self.teacher_scorer, engine, self.weights, setup.export)
        self.batching = Batching(
            budget=self.settings.micro_batch_tokens or default_budget(self.device),
            packed=self.layout == "packed",
            contexts=tuple(setup.contexts),
            routes=self.objective.routes,
            spans=tuple(setup.spans),
            device=self.device,
        )
        self.lr_factor, self.steps_done = lr_factor(self.settings, setup.total_steps), 0

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def step(self, examples: Sequence[Example]) -> Metrics:
        """One pass over the step's rollouts: ``updates_per_step`` optimizer updates, then the teacher's."""
        metrics, losses, norms = MetricAccumulator(), [], []
        lr = self.settings.lr * self.lr_factor(self.steps_done)
        self.engine.set_lr(lr)
        updates = split(examples, self.settings.updates_per_step)
        old = self._old_logprobs(updates) if len(updates) > 1 else [None]
        for update, old_logprobs in zip(updates, old, strict=True):
            loss, norm = self._update(update, old_logprobs, metrics)
            losses.append(loss)
            norms.append(norm)
        self.steps_done += 1
        self.teacher_scorer.update(self.steps_done)
        self.collectives.merge(metrics, self.telemetry)
        return (
            metrics.means()
            | (self.telemetry.metrics() if self.telemetry else {})
            | {
                "train/loss": sum(losses) / len(losses),
                "train/grad_norm": max(norms),
                "train/lr": lr,
                "train/skipped_updates": float(sum(not math.isfinite(n) for n in norms)),
                "train/empty_updates": float(sum(n == 0.0 for n in norms)),
            }
        )

    def _update(
        self, examples: Sequence[Example], old: Sequence[Tensor] | None, metrics: MetricAccumulator
    ) -> tuple[float, float]:
        """One optimizer update: loss and norm of the gradient. A gradient that is 0 or not finite is not applied.

        If memory runs out, the update is repeated with micro-batches of half the size.
        """
        while True:
            before, own = copy.deepcopy(self.telemetry), MetricAccumulator()
            try:
                loss = self._accumulate(examples, old, own)
                break
            except torch.OutOfMemoryError:
                if not (self.engine.discard_gradient() and self.batching.halve(examples)):
                    raise
                budget = self.batching.budget
                self.on_fault("trainer", f"out of memory; trainer.micro_batch_tokens is {budget} from now on")
                self.telemetry = before
        metrics.absorb(own)
        if loss is None:
            return 0.0, 0.0
        with self.clock.phase("update"):
            return loss, self.engine.step()

    def _accumulate(
        self, examples: Sequence[Example], old: Sequence[Tensor] | None, metrics: MetricAccumulator
    ) -> float | None:
        """Adds up the gradient and returns the loss; None if no term has a token.

        Args:
            examples: the update's, of all ranks
            old: ``[T]`` log-probabilities of each example of this rank's shard before the first update; None: the current ones
            metrics: gets what is measured on this rank
        """
        shard = self.collectives.shard(examples)
        cut = in_step(self.batching.windows(shard), self.collectives, filler=len(shard))
        rows = [*shard, min(examples, key=num_tokens)]
        batches = [(micro, self.batching.batch([rows[i] for i in micro.indices])) for micro in cut]
        own = [batch for micro, batch in batches if not micro.idle]
        if not has_tokens(self.objective, own, self.collectives):
            return None
        teachers = TeacherWindows(rows, cut, self.teacher_hidden)
        metrics.count("teacher/tokens", self.teacher_scorer.tokens(shard, with_ref=self.objective.needs_ref))

        def read(micro: MicroBatch, batch: TrainBatch) -> LossInputs:
            known = None if micro.idle else stacked(batch, old, micro.indices)
            return self.inputs(batch, known, teachers.hidden(micro))

        def survey() -> Iterator[LossInputs]:
            for micro, batch in batches:
                inputs = read(micro, batch)
                if not micro.idle:
                    yield inputs

        totals = update_totals(self.objective, own, survey, self.collectives)
        total = torch.zeros((), device=self.device, dtype=exact_dtype(self.device))
        for micro, batch in batches:
            inputs = read(micro, batch)
            with self.clock.phase("update"):
                loss = self.objective.loss(inputs, totals, None if micro.idle else metrics)
                self.engine.backward(0.0 * loss if micro.idle else loss)
            if not micro.idle:
                total += loss.detach()
                observe(inputs, metrics, self.telemetry)
            del inputs, loss  # with the teachers' states in their graph, before the next window is read
        return self.collectives.all_sum({"": total.item()})[""]

    def inputs(
        self,
        batch: TrainBatch,
        old_logprobs: Tensor | None = None,
        teacher_hidden: Sequence[TeacherHidden] | None = None,
        *,
        through: Callable[[HiddenStates], HiddenStates] | None = None,
    ) -> LossInputs:
        """Runs the student over one micro-batch, and compares it with the teacher.

        Args:
            batch: the micro-batch, B rollouts
            old_logprobs: ``[B, T]``; None: the current ones are the old ones
            teacher_hidden: B entries, of the batch's rollouts in order; None: the teacher scores them now
            through: applied to the student's hidden states before the head
        """
        hidden = self.teacher_hidden(batch.examples) if teacher_hidden is None else teacher_hidden
        teachers = self.teacher_scorer.states(batch, hidden)
        with self.clock.phase("update"):
            student = self._student_states(batch.examples)
            student = student if through is None else through(student)
            ids, comparisons = batch.completion_ids[batch.sampled_mask], self.objective.comparisons
            with self.engine.autocast():
                stats = token_stats(
                    student,
                    teachers,
                    ids,
                    comparisons,
                    marker_ids=self.marker_ids,
                    temperatures=self.objective.temperatures,
                )
        return loss_inputs(batch, stats, old_logprobs)

    def weights(self) -> StudentWeights:
        """All of them with tied ones under each of their names: vLLM on the CPU repacks the head's matrix, so one that is tied to the
        embedding has to be named again."""
        student, each = self.student, self.engine.each
        return StudentWeights(
            lambda: each(merged_weights(student) if adapted(student) else whole_weights(student)),
            adapter=lambda: each(adapter_weights(student)),
        )

    @torch.no_grad()
    def logprobs(self, examples: Sequence[Example]) -> list[Tensor]:
        """The student's log-probability of each sampled token, ``[N]`` per example in the order given."""
        found: list[Tensor] = [torch.empty(0)] * len(examples)
        cut = self.batching.cut(examples)
        idle = self.collectives.max_passes(len(cut)) - len(cut)
        for indices in [*cut, *cut[:1] * idle]:
            batch = self.batching.batch([examples[i] for i in indices])
            states = self._student_states(batch.examples)
            with self.engine.autocast():
                flat = token_stats(states, {}, batch.completion_ids[batch.sampled_mask]).logprobs
            lengths = [e.rollout.num_sampled for e in batch.examples]
            for i, row in zip(indices, flat.split(lengths), strict=True):
                found[i] = row
        return found

    @torch.no_grad()
    def teacher_hidden(self, examples: Sequence[Example]) -> list[TeacherHidden]:
        """The hidden states of teacher and reference model for each example, under the teacher's current weights."""
        with self.clock.phase("score"):
            budget = NO_GRAPH_FACTOR * self.batching.budget
            return self.teacher_scorer.score(examples, budget=budget, with_ref=self.objective.needs_ref)

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(trainer, *arguments)``; with several ranks on each of them, returning the first rank's result."""
        return function(self, *arguments)

    def freeze_teacher(self) -> None:
        self.teacher_scorer.frozen = True

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the tensors that ``save`` writes: few plain values."""
        return {
            "steps_done": self.steps_done,
            "teacher_frozen": self.teacher_scorer.frozen,
            "telemetry": self.telemetry.state() if self.telemetry else {},
        }

    def save(self, folder: Path, *, at_once: bool = False) -> Callable[[], None]:
        """``TrainerFiles.save``; the reference model is read from ``model.path`` again."""
        with torch.no_grad():
            return self.files.save(folder, at_once=at_once)

    @torch.no_grad()
    def load_state(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Restores a saved run: what ``save`` wrote and what ``state`` returned."""
        self.files.load(folder)
        self.teacher_scorer.frozen = state["teacher_frozen"]
        self.steps_done = state["steps_done"]
        if self.telemetry is not None:
            self.telemetry.load_state(state["telemetry"])

    def restart(self) -> None:
        """Not supported: this trainer runs in the driver process and cannot fail independently of it."""
        raise NotImplementedError

    def close(self) -> None:
        """There is nothing to release."""

    def _student_states(self, examples: Sequence[Example]) -> HiddenStates:
        """Hidden states that predict the sampled tokens; observed ones are read and predict nothing that is trained."""
        states = completion_states(self.student, student_rows(examples), layout=self.layout, body=self.engine.body)
        return replace(states, hidden=select_sampled(states.hidden, [e.rollout for e in examples]))

    def _old_logprobs(self, updates: Sequence[Sequence[Example]]) -> list[list[Tensor]]:
        """For each update, the log-probabilities of this rank's shard before the first update."""
        shards = [self.collectives.shard(update) for update in updates]
        with self.clock.phase("score"):
            rows = iter(self.logprobs([e for shard in shards for e in shard]))
        return [[next(rows) for _ in shard] for shard in shards]


def local(
    *,
    setup: TrainerSetup,
    device: str | None = None,
    precision: Precision = "auto",
    layout: Layout | None = None,
    gradient_checkpointing: bool | None = None,
    moments: Moments = "float32",
    lora_rank: Annotated[int, NOT_NEGATIVE] = 0,
    lora_alpha: Annotated[int, POSITIVE] = 32,
    lora_targets: list[str] | None = None,
) -> PolicyTrainer:
    """The trainer in one process, on one device.

    Args:
        device: torch device; null: the GPU if there is one, else the CPU
        precision: dtype of the forward pass; trained weights, gradients and log-probabilities stay float32. `auto`: bfloat16 on a CUDA GPU,
            else float32
        layout: `packed` runs a micro-batch as one row without padding, and a prompt that several rollouts share only once;
            `padded` pads every rollout to a row of its own; null: packed if the model's attention is transformers' sdpa
        gradient_checkpointing: recompute the layers in the backward pass: saves memory, takes a third more time; null: on a CUDA GPU
        moments: where AdamW keeps its two moments between updates. `float32`: on the device, 8 bytes a trained parameter; `8bit`: on the
            device in 2 bytes, rounded, but for embeddings and head, which stay float32; `host`: float32 in the host's memory, with the
            same numbers as `float32`
        lora_rank: rank of low-rank adapters, the only weights then trained; 0: all weights are trained
        lora_alpha: the adapters' output is scaled by lora_alpha / lora_rank
        lora_targets: suffixes of the names of the layers that get an adapter; null: every linear layer, and every expert, but the
            head; an embedding's adapter is added to a head that is tied to it as well
    """
    return PolicyTrainer(
        setup,
        TorchEngine(setup.settings, device, moments),
        ForwardSettings(precision, layout, gradient_checkpointing),
        LoraSettings(lora_rank, lora_alpha, lora_targets),
    )


def forward_report(trainer: Any) -> ForwardReport | None:
    """For ``Trainer.apply``: what became of the settings that are left to the device; None for a user's own trainer."""
    return getattr(trainer, "forward_report", None)


def ids_read(trainer: PolicyTrainer) -> dict[str, list[int]]:
    """For ``Trainer.apply``: lexicon -> the tokens that the loss reads as its markers."""
    return {name: ids.tolist() for name, ids in trainer.marker_ids.items()}


def _report(asked: ForwardSettings, engine: Engine, *, can_recompute: bool) -> ForwardReport:
    """The same on every rank: the first one's settings, which a resumed run may have from its folder."""
    asked = engine.collectives.all_gather(asked)[0]
    default = ForwardSettings(layout=asked.layout).on(engine.device, can_recompute=can_recompute)
    settings = asked.on(engine.device, can_recompute=can_recompute)
    return ForwardReport(tuple(engine.collectives.all_gather(device_name(engine.device))), settings, default)


def choose_layout(requested: Layout | None, *models: PreTrainedModel) -> Layout:
    """Packed if every model supports it, unless requested otherwise; prepares the models that will run packed.

    Raises:
        ValueError: packed was requested, and a model does not support it.
    """
    if requested == "padded":
        return "padded"
    unfit = [type(m).__name__ for m in models if not prefix_sharing.supports_prefix_sharing(m)]
    unfit = unfit or [type(m).__name__ for m in models if not prefix_sharing.enable_prefix_sharing(m)]
    if requested == "packed" and unfit:
        raise ValueError(
            f"trainer.layout: {unfit[0]} cannot be packed, its attention is not transformers' sdpa; expected padded or null"
        )
    return "padded" if unfit else "packed"


def split(examples: Sequence[Example], parts: int) -> list[Sequence[Example]]:
    """Contiguous parts of nearly equal size; fewer than ``parts`` if there are fewer examples."""
    size = math.ceil(len(examples) / parts)
    return [examples[i : i + size] for i in range(0, len(examples), size)]
