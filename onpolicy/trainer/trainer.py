"""The trainer for one process and one device: plain torch, and the reference other trainers are compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onpolicy.config.schema import TrainerSettings
from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.objective import MetricAccumulator, Objective
from onpolicy.trainer import prefix_sharing
from onpolicy.trainer.chunked_head import HiddenStates, read
from onpolicy.trainer.collate import collate, select_sampled
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.forward import Layout, completion_states
from onpolicy.trainer.lora import adapted, adapter_tensors, add_adapter, merged
from onpolicy.trainer.loss_inputs import loss_inputs, observe, stacked, to_device
from onpolicy.trainer.micro_batches import Row, micro_batches
from onpolicy.trainer.teacher import Taught, TeacherScorer
from onpolicy.trainer.teacher_rules import WeightRule
from onpolicy.trainer.zero3 import wholes
from onpolicy.types import Example, LossInputs, Metrics, TrainBatch
from onpolicy.utils.timer import PhaseTimer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


WITHOUT_GRAPH = 4
"""A token that keeps no graph needs memory for one layer at a time; so many of them are read for each that learns."""


class LocalTrainer:
    """Student, teacher and optimizer on one device; weights and optimizer in float32."""

    _body: Callable[..., Any] | None = None
    """What runs the student without its head; None: the model itself."""
    on_fault: Callable[[str, str], None] = staticmethod(lambda role, what: None)
    """Told of faults that it got over."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        objective: Objective,
        teacher: WeightRule,
        settings: TrainerSettings,
        total_steps: int,
        contexts: Sequence[str],
        clock: PhaseTimer,
        spans: Sequence[str] = (),
        marker_ids: Mapping[str, Sequence[int]] | None = None,
        teacher_model: PreTrainedModel | None = None,
        telemetry: TokenTelemetry | None = None,
        device: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
        layout: Layout | None = None,
        gradient_checkpointing: bool = False,
        lora_rank: int = 0,
        lora_alpha: int = 32,
        lora_targets: list[str] | None = None,
    ) -> None:
        """
        Args:
            device: torch device; null: the GPU where there is one, else the CPU
            precision: what the forward pass runs in; weights, optimizer and log-probabilities stay float32
            layout: `packed` runs a micro-batch as one row without padding, a prompt that several rollouts share only once;
                `padded` runs it row by row; null: packed where the model's attention is transformers' sdpa
            gradient_checkpointing: recompute the model's layers in the backward pass: less memory, a third more time
            lora_rank: rank of low-rank adapters, which then are all that learns; 0: every weight learns
            lora_alpha: the adapters' output counts lora_alpha / lora_rank
            lora_targets: ends of the names of the layers that get one; null: every linear layer but the head
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.student = model.to(torch.float32).eval()  # no dropout: teacher = student must give exactly 0
        self.objective, self.rule, self.settings = objective, teacher, settings
        self.together = self._together()
        self.contexts, self.clock = tuple(contexts), clock
        self.layout = _layout(layout, *(m for m in (model, teacher_model) if m is not None))
        self.autocast, self.steps_done, self._halvings = precision == "bfloat16", 0, 0
        if gradient_checkpointing:
            _train_without_dropout(self.student)
            self.student.gradient_checkpointing_enable({"use_reentrant": False})
        if lora_rank:
            add_adapter(self.student, rank=lora_rank, alpha=lora_alpha, targets=lora_targets)
        self.teaching = TeacherScorer(
            self.student,
            teacher,
            needs_ref=objective.needs_ref,
            layout=self.layout,
            other=None if teacher_model is None else teacher_model.to(torch.float32),
            place=self._place,
            body=self._body,
            rounds=self.together.rounds,
        )
        self.spans, self.telemetry = tuple(spans), telemetry
        self.marker_ids = {name: torch.tensor(ids, device=self.device) for name, ids in (marker_ids or {}).items()}
        self.optimizer = self._optimizer()
        self.lr_factor = lr_factor(settings, total_steps)

    def step(self, examples: Sequence[Example]) -> Metrics:
        """One pass over the step's rollouts: ``updates_per_step`` optimizer updates, then the teacher's."""
        tally, losses, norms = MetricAccumulator(), [], []
        lr = self.settings.lr * self.lr_factor(self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        shares = split(examples, self.settings.updates_per_step)
        old = self._old_logprobs(shares) if len(shares) > 1 else {}
        for share in shares:
            loss, norm = self._update(share, old, tally)
            losses.append(loss)
            norms.append(norm)
        self.steps_done += 1
        self.teaching.follow(self.steps_done)
        self.together.collect(tally, self.telemetry)
        return (
            tally.means()
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
        self, examples: Sequence[Example], old: Mapping[int, Tensor], tally: MetricAccumulator
    ) -> tuple[float, float]:
        """One optimizer update; one whose gradient is not finite, or exactly 0, is left out and counted.

        Where memory runs out it is begun again with micro-batches of half the size.
        """
        while True:
            before, own = copy.deepcopy(self.telemetry), MetricAccumulator()
            try:
                loss = self._accumulate(examples, old, own)
                break
            except torch.OutOfMemoryError:
                if not self._halve(examples):
                    raise
                self.telemetry = before
        tally.absorb(own)
        if loss is None:
            return 0.0, 0.0
        with self.clock.phase("update"):
            return loss, self._apply()

    def _accumulate(
        self, examples: Sequence[Example], old: Mapping[int, Tensor], tally: MetricAccumulator
    ) -> float | None:
        """Adds up the gradient and returns the loss; None where no term has a token."""
        share = self.together.share(examples)
        batches = list(self.batches(share))
        tokens = sum(int(term.tokens(batch).sum()) for batch in batches for term in self.objective.terms)
        counts = self.together.summed({**self.objective.denominators(batches), "": tokens})
        denominators = {name: int(count) for name, count in counts.items()}
        if not denominators.pop(""):
            return None
        # a rank that has fewer micro-batches than another computes along with it, for nothing
        idle = [min(examples, key=_length)] * (self.together.rounds(len(batches)) - len(batches))
        total, taught = 0.0, self.taught([*share, *idle[:1]])
        tally.count("teacher/tokens", self.teaching.tokens(share, with_ref=self.objective.needs_ref))
        for batch in batches:
            inputs = self.inputs(batch, stacked(batch, old), taught=taught)
            with self.clock.phase("update"):
                loss = self.objective(inputs, denominators, tally)
                self._backward(loss)
            total += loss.item()
            observe(inputs, tally, self.telemetry)
        for example in idle:
            inputs = self.inputs(self.batch([example]), taught=taught)
            self._backward(0.0 * self.objective(inputs, denominators))
        return self.together.summed({"": total})[""]

    def _together(self) -> SingleProcess:
        return SingleProcess()

    def _place(self, model: PreTrainedModel) -> None:
        """Puts a teacher where it reads."""
        model.to(self.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        """Puts the student where it learns."""
        self.student.to(self.device)
        return adamw(self.student, self.settings)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def _apply(self) -> float:
        """Updates the weights, unless the gradient's norm, which it returns, is 0 or not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.max_grad_norm))
        if math.isfinite(norm) and norm > 0.0:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _halve(self, examples: Sequence[Example]) -> bool:
        """Whether the update can be begun again with smaller micro-batches."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.budget <= max(map(_length, examples)):
            return False
        self._halvings += 1
        self.on_fault("trainer", f"out of memory; trainer.micro_batch_tokens is {self.budget} from now on")
        return True

    def inputs(
        self,
        batch: TrainBatch,
        old_logprobs: Tensor | None = None,
        *,
        taught: Taught | None = None,
        through: Callable[[HiddenStates], HiddenStates] | None = None,
    ) -> LossInputs:
        """Runs the student over one micro-batch, and compares it with the teacher.

        Args:
            batch: the micro-batch
            old_logprobs: None: the current ones are the old ones
            taught: what the teacher sees in these rollouts; None: it is read now
            through: what the student's states pass on their way to the head
        """
        teachers = self.teaching.states(batch, self.taught(batch.examples) if taught is None else taught)
        with self.clock.phase("update"), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            student = self._states(batch)
            student = student if through is None else through(student)
            ids, comparisons = batch.completion_ids[batch.sampled_mask], self.objective.comparisons
            readings = read(student, teachers, ids, comparisons, marker_ids=self.marker_ids)
        return loss_inputs(batch, readings, old_logprobs)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under their Hugging Face names; tied ones under each of them, adapters merged.

        vLLM on the CPU repacks the head's matrix, so one that is tied to the embedding has to be named again.
        """
        if adapted(self.student):
            yield from merged(self.student)
        else:
            yield from wholes(self.student.state_dict(keep_vars=True).items())

    @torch.no_grad()
    def logprobs(self, examples: Sequence[Example]) -> list[Tensor]:
        """The student's log-probability of each sampled token, per rollout."""
        found: dict[int, Tensor] = {}
        batches = list(self.batches(examples))
        idle = self.together.rounds(len(batches)) - len(batches)
        for batch in [*batches, *batches[:1] * idle]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                flat = read(self._states(batch), {}, batch.completion_ids[batch.sampled_mask]).logprobs
            lengths = [e.rollout.num_sampled for e in batch.examples]
            found |= {id(e): row for e, row in zip(batch.examples, flat.split(lengths), strict=True)}
        return [found[id(e)] for e in examples]

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(trainer, *arguments)``, on every rank where there are several; returns what the first answers."""
        return function(self, *arguments)

    def freeze_teacher(self) -> None:
        self.teaching.still = True

    def state(self) -> dict[str, Any]:
        """Optimizer, progress, adapters and a teacher that moves; the reference model is read from ``model.path`` again."""
        return {
            "optimizer": self._moments(),
            "steps_done": self.steps_done,
            "teacher": dict(self.teaching.weights()),
            "teacher_still": self.teaching.still,
            "adapter": dict(wholes(adapter_tensors(self.student))),
            "telemetry": self.telemetry.state() if self.telemetry else {},
        }

    @torch.no_grad()
    def load_state(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Puts a saved run back: the student's weights and what ``state`` returned."""
        self._assign(state["adapter"] or weights)
        self.teaching.load_weights(state["teacher"])
        self.teaching.still = state["teacher_still"]
        self._load_moments(state["optimizer"])
        self.steps_done = state["steps_done"]
        if self.telemetry is not None:
            self.telemetry.load_state(state["telemetry"])

    def restart(self) -> None:
        """Never needed: it shares the driver's fate."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""

    @property
    def budget(self) -> int:
        """Tokens in a micro-batch. A CPU gains nothing from more than it needs to fill its matrix products, and loses its cache."""
        return (self.settings.micro_batch_tokens or (1024 if self.device.type == "cpu" else 8192)) >> self._halvings

    def batches(self, examples: Sequence[Example]) -> Iterator[TrainBatch]:
        """All micro-batches of one update; how they are cut does not matter to the gradient."""
        for numbers in micro_batches(_rows(examples), self.budget, packed=self.layout == "packed"):
            yield self.batch([examples[i] for i in numbers])

    def batch(self, examples: Sequence[Example]) -> TrainBatch:
        """Collated, on the device."""
        return to_device(
            collate(examples, contexts=self.contexts, routes=self.objective.routes, spans=self.spans), self.device
        )

    @torch.no_grad()
    def taught(self, examples: Sequence[Example]) -> Taught:
        """What the teacher, as it is now, sees in these rollouts."""
        with self.clock.phase("score"), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.teaching.read(examples, budget=WITHOUT_GRAPH * self.budget, with_ref=self.objective.needs_ref)

    def _states(self, batch: TrainBatch) -> HiddenStates:
        states = completion_states(self.student, _rows(batch.examples), layout=self.layout, body=self._body)
        return replace(states, hidden=select_sampled(states.hidden, [e.rollout for e in batch.examples]))

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimizer's state by parameter: whole tensors, whatever the trainer that made them."""
        return {
            name: dict(self.optimizer.state[parameter])
            for name, parameter in self.student.named_parameters()
            if parameter in self.optimizer.state
        }

    def _load_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, parameter in self.student.named_parameters():
            if name in moments:
                self.optimizer.state[parameter] = {
                    key: value.to("cpu" if key == "step" else parameter.device, copy=True)
                    for key, value in moments[name].items()
                }

    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])

    def _old_logprobs(self, shares: Sequence[Sequence[Example]]) -> dict[int, Tensor]:
        examples = [e for share in shares for e in self.together.share(share)]
        with self.clock.phase("score"):
            return {id(e): row for e, row in zip(examples, self.logprobs(examples), strict=True)}


def _rows(examples: Sequence[Example]) -> list[Row]:
    """As the student reads them."""
    return [(e.rollout.prompt_ids, e.rollout.completion_ids) for e in examples]


def _length(example: Example) -> int:
    return len(example.rollout.prompt_ids) + len(example.rollout.completion_ids)


def _layout(wanted: Layout | None, *models: PreTrainedModel) -> Layout:
    """Packed where it can be, unless told otherwise; models that will be packed are made ready for it."""
    if wanted == "padded":
        return "padded"
    unfit = [type(m).__name__ for m in models if not prefix_sharing.supports_prefix_sharing(m)]
    unfit = unfit or [type(m).__name__ for m in models if not prefix_sharing.prepare(m)]
    if wanted == "packed" and unfit:
        raise ValueError(
            f"trainer.layout: {unfit[0]} cannot be packed, its attention is not transformers' sdpa; wanted padded or null"
        )
    return "padded" if unfit else "packed"


def _train_without_dropout(model: PreTrainedModel) -> None:
    """Layers are recomputed in training mode only, where some models drop out: teacher = student must give exactly 0."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def split(examples: Sequence[Example], parts: int) -> list[Sequence[Example]]:
    """Contiguous shares of nearly equal size; fewer than ``parts`` where there are fewer examples."""
    size = math.ceil(len(examples) / parts)
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def lr_factor(settings: TrainerSettings, total_steps: int) -> Callable[[int], float]:
    """Step (from 0) -> share of the peak learning rate."""

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
        shapes = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return shapes[settings.lr_schedule]

    return factor


def adamw(model: PreTrainedModel, settings: TrainerSettings) -> torch.optim.AdamW:
    """Over everything that learns."""
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        weight_decay=settings.weight_decay,
    )
