"""The trainer for one process and one device: plain torch, and the reference other trainers are compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onpolicy.clock import Clock
from onpolicy.collate import collate
from onpolicy.config import TrainerFrame
from onpolicy.distill.vocabulary import Readings, States, read
from onpolicy.forward import Layout, completion_states, head_of
from onpolicy.loss import Objective, Tally
from onpolicy.teachers import WeightRule
from onpolicy.types import Example, LossInputs, Metrics, TeacherScores, TeacherView, TrainBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

START = "<start model>"
"""Beside the views: the start model on the student's own prompt, for ``ref_logprobs``. No view can have this name in YAML by accident."""


class LocalTrainer:
    """Student, teacher and optimizer on one device; weights and optimizer in float32."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        objective: Objective,
        teacher: WeightRule,
        settings: TrainerFrame,
        total_steps: int,
        pad_id: int,
        views: Sequence[str],
        clock: Clock,
        device: str | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
        layout: Layout = "padded",
        gradient_checkpointing: bool = False,
    ) -> None:
        """
        Args:
            device: torch device; null: the GPU where there is one, else the CPU
            precision: what the forward pass runs in; weights, optimizer and log-probabilities stay float32
            layout: `padded` runs micro-batches row by row, `packed` as one row without padding
            gradient_checkpointing: recompute the model's layers in the backward pass: less memory, a third more time
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.student = model.to(self.device, torch.float32).eval()  # no dropout: teacher = student must give exactly 0
        self.objective, self.rule, self.settings = objective, teacher, settings
        self.pad_id, self.views, self.clock, self.layout = pad_id, tuple(views), clock, layout
        self.autocast = precision == "bfloat16"
        if gradient_checkpointing:
            self.student.train()
            self.student.gradient_checkpointing_enable({"use_reentrant": False})
        self.teacher = self._copy() if teacher.copies else self.student
        frozen = teacher.copies and teacher.update is None
        self.start = (self.teacher if frozen else self._copy()) if objective.needs_ref else None
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=settings.lr,
            betas=(settings.betas[0], settings.betas[1]),
            weight_decay=settings.weight_decay,
        )
        self.lr_factor = lr_factor(settings, total_steps)
        self.steps_done = 0

    def step(self, examples: Sequence[Example]) -> Metrics:
        """One pass over the step's rollouts: ``updates_per_step`` optimizer updates, then the teacher's."""
        tally, losses, norms = Tally(), [], []
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
        self._move_teacher()
        skipped = sum(not math.isfinite(n) for n in norms)
        return tally.means() | {
            "train/loss": sum(losses) / len(losses),
            "train/grad_norm": max(norms),
            "train/lr": lr,
            "train/skipped_updates": float(skipped),
        }

    def _update(self, examples: Sequence[Example], old: Mapping[int, Tensor], tally: Tally) -> tuple[float, float]:
        """One optimizer update; an update whose gradient is not finite is left out and counted."""
        batches = [(chunk, self.batch(chunk)) for chunk in self._micro_batches(examples)]
        denominators = self.objective.denominators(batch for _, batch in batches)
        if not any(denominators.values()):
            return 0.0, 0.0
        total = 0.0
        for chunk, batch in batches:
            inputs = self.inputs(batch, _stack(chunk, batch, old))
            with self.clock("update"):
                loss = self.objective(inputs, denominators, tally)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            tally.add("policy/entropy", inputs.entropy, inputs.response_mask)
            tally.add(
                "rollout/logprob_gap", (inputs.old_logprobs - inputs.rollout_logprobs).abs(), inputs.response_mask
            )
        with self.clock("update"):
            norm = float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.max_grad_norm))
            if math.isfinite(norm):
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return total, norm

    def inputs(self, batch: TrainBatch, old_logprobs: Tensor | None = None) -> LossInputs:
        """Runs student and teacher over one micro-batch; ``old_logprobs`` None: the current ones are the old ones."""
        with self.clock("score"):
            teachers = self._teachers(batch)
        with self.clock("update"), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            student = self._states(self.student, batch)
            readings = read(student, teachers, batch.completion_ids[batch.response_mask], self.objective.comparisons)
        return loss_inputs(batch, readings, old_logprobs)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under their Hugging Face names; tied ones under each of them.

        vLLM on the CPU repacks the head's matrix, so one that is tied to the embedding has to be named again.
        """
        yield from self.student.state_dict().items()

    @torch.no_grad()
    def logprobs(self, examples: Sequence[Example]) -> list[Tensor]:
        """The student's log-probability of each sampled token, per rollout ``[T]``."""
        found: dict[int, Tensor] = {}
        for chunk in self._micro_batches(examples):
            batch = self.batch(chunk)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                flat = read(self._states(self.student, batch), {}, batch.completion_ids[batch.response_mask]).logprobs
            for example, row in zip(chunk, flat.split([len(e.rollout.completion_ids) for e in chunk]), strict=True):
                found[id(example)] = row
        return [found[id(e)] for e in examples]

    def state(self) -> dict[str, Any]:
        """Optimizer, progress and a teacher that moves; the start model is read from ``model.path`` again."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "steps_done": self.steps_done}
        if self.rule.copies and self.rule.update is not None:
            state["teacher"] = dict(self.teacher.named_parameters())
        return state

    @torch.no_grad()
    def load_state(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Puts a saved run back: the student's weights and what ``state`` returned."""
        _assign(self.student, weights)
        if "teacher" in state:
            _assign(self.teacher, state["teacher"])
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.steps_done = state["steps_done"]

    def _copy(self) -> PreTrainedModel:
        return copy.deepcopy(self.student).requires_grad_(False).eval()

    def _micro_batches(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """By length, so that little padding is computed; the order does not matter to the gradient."""
        ordered = sorted(examples, key=lambda e: len(e.rollout.prompt_ids) + len(e.rollout.completion_ids))
        for start in range(0, len(ordered), self.settings.micro_batch):
            yield ordered[start : start + self.settings.micro_batch]

    def batch(self, examples: Sequence[Example]) -> TrainBatch:
        """Collated, on the device."""
        return to_device(collate(examples, views=self.views, pad_id=self.pad_id), self.device)

    def _states(self, model: PreTrainedModel, batch: TrainBatch) -> States:
        return completion_states(model, batch.input_ids, batch.attention_mask, batch.response_mask, layout=self.layout)

    @torch.no_grad()
    def _teachers(self, batch: TrainBatch) -> dict[str, States]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            head = head_of(self.teacher)
            states = {name: States(self._teacher_hidden(batch, view), head) for name, view in batch.views.items()}
            if self.start is not None:
                states[START] = self._states(self.start, batch)
        return states

    def _teacher_hidden(self, batch: TrainBatch, view: TeacherView) -> Tensor:
        """[N, H] for all N sampled tokens; zeros, which the mask hides, where a rollout has no context."""
        width = self.student.config.get_text_config().hidden_size
        hidden = torch.zeros(int(batch.response_mask.sum()), width, device=self.device)
        if len(view.rows):
            seen = completion_states(
                self.teacher, view.input_ids, view.attention_mask, view.mask[view.rows], layout=self.layout
            )
            hidden = hidden.to(seen.hidden.dtype)
            hidden[view.mask[batch.response_mask]] = seen.hidden
        return hidden

    def _old_logprobs(self, shares: Sequence[Sequence[Example]]) -> dict[int, Tensor]:
        examples = [e for share in shares for e in share]
        with self.clock("score"):
            return {id(e): row for e, row in zip(examples, self.logprobs(examples), strict=True)}

    @torch.no_grad()
    def _move_teacher(self) -> None:
        if self.rule.copies and self.rule.update is not None:
            for teacher, student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                self.rule.update(teacher, student, self.steps_done)


def _stack(examples: Sequence[Example], batch: TrainBatch, old: Mapping[int, Tensor]) -> Tensor | None:
    """The examples' old log-probs ``[B, T]``; None where none were computed because nothing has moved yet."""
    if not old:
        return None
    flat = torch.cat([old[id(e)] for e in examples])
    return spread(flat, batch.response_mask)


def loss_inputs(batch: TrainBatch, readings: Readings, old_logprobs: Tensor | None) -> LossInputs:
    """Lays per-token numbers ``[N]`` out as ``[B, T]``."""
    mask = batch.response_mask
    logprobs = spread(readings.logprobs, mask)
    return LossInputs(
        logprobs=logprobs,
        entropy=spread(readings.entropy, mask),
        old_logprobs=logprobs.detach() if old_logprobs is None else old_logprobs,
        rollout_logprobs=batch.rollout_logprobs,
        ref_logprobs=spread(readings.teacher_logprobs[START], mask) if START in readings.teacher_logprobs else None,
        advantages=batch.advantages,
        response_mask=mask,
        teacher={
            name: TeacherScores(
                logprobs=spread(readings.teacher_logprobs[name], mask),
                entropy=spread(readings.teacher_entropy[name], mask),
                mask=view.mask,
            )
            for name, view in batch.views.items()
        },
        divergences={comparison: spread(values, mask) for comparison, values in readings.divergences.items()},
    )


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """[N] -> [B, T]: the n-th marked position gets the n-th number, the others 0."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def split(examples: Sequence[Example], parts: int) -> list[Sequence[Example]]:
    """Contiguous shares of nearly equal size; fewer than ``parts`` where there are fewer examples."""
    size = math.ceil(len(examples) / parts)
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def lr_factor(settings: TrainerFrame, total_steps: int) -> Callable[[int], float]:
    """Step (from 0) -> share of the peak learning rate."""

    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps
        done = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
        shapes = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return shapes[settings.lr_schedule]

    return factor


def to_device(batch: TrainBatch, device: torch.device) -> TrainBatch:
    moved = {f.name: getattr(batch, f.name).to(device) for f in fields(batch) if f.name != "views"}
    views = {
        name: TeacherView(**{f.name: getattr(view, f.name).to(device) for f in fields(view)})
        for name, view in batch.views.items()
    }
    return TrainBatch(**moved, views=views)


def _assign(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
