"""verl's FSDP2 engine, with our loss and a head that runs at sampled tokens only, some of them at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from onpolicy.integrations.verl.bridge import STUDENT, TEACHER, Bridge
from onpolicy.integrations.verl.reading_engine import ReadingEngine, budget_of
from onpolicy.integrations.verl.shared_prompts import Count, cut
from onpolicy.trainer.head import Head, HeadLike, HiddenStates


class TeacherReader(Protocol):
    """What the engine needs of ``teachers.Teachers``."""

    @property
    def prompts(self) -> Sequence[str]:
        """The column of the prompts that each pass over a micro-batch reads."""
        ...

    def tokens(self) -> Count:
        """What they have read since it was last asked."""
        ...

    def read(self, data: TensorDict) -> Mapping[str, Tensor]:
        """The teachers' hidden states ``[N, H]`` at a micro-batch's sampled tokens, by context."""
        ...

    def heads(self, student: Head) -> Mapping[str, HeadLike]:
        """What makes logits of them."""
        ...

    def forget(self) -> None:
        """Frees what is kept from one micro-batch to the next."""
        ...


class TeachingEngine(ReadingEngine):
    """A student that learns from teachers once ``learn`` was called; verl's own engine until then and in verl's forward-only passes."""

    _bridge: Bridge | None = None
    _teachers: TeacherReader
    _surveying = False
    """Whether the pass under way is forward only and read by teachers all the same."""

    def learn(self, bridge: Bridge, teachers: TeacherReader) -> None:
        """From now on every update uses this loss."""
        self._bridge, self._teachers = bridge, teachers

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        """The gradient of one optimizer update."""
        if forward_only or self._bridge is None:
            return super().forward_backward_batch(data, loss_function, forward_only)
        self._bridge.begin(data)
        try:
            if self._bridge.needs_survey:
                self._survey(data, self._bridge)
            output = self._in_micro_batches(data, loss_function)
        finally:
            self._teachers.forget()
        self._bridge.count(TEACHER, self._teachers.tokens())
        output["metrics"].update(self._bridge.end())
        return output

    def _in_micro_batches(self, data: TensorDict, loss_function: Any, *, forward_only: bool = False) -> Any:
        """verl's passes over an update, in our micro-batches where rows that share a prompt are kept together.

        verl then gets each as a batch of its own, and is told to wait with the gradient's exchange as it would itself.
        """
        assert self._bridge is not None
        batches = cut(data, self._teachers.prompts, self._bridge.together) if self.shares else None
        if batches is None:
            return super().forward_backward_batch(data, loss_function, forward_only)
        losses: list[float] = []
        for batch in batches:
            last = batch is batches[-1]
            with nullcontext() if forward_only else self._gradient_sync_context(is_last_micro_batch=last):
                output = super().forward_backward_batch(batch, loss_function, forward_only)
            losses += output["loss"]
        return output | {"loss": losses}

    def _survey(self, data: TensorDict, bridge: Bridge) -> None:
        """Student and teachers read the update without a graph, in the micro-batches in which it is trained."""
        self._surveying = True
        try:
            self._in_micro_batches(data, bridge.survey, forward_only=True)
        finally:
            self._surveying = False
        bridge.end_survey()

    def optimizer_step(self) -> Any:
        """verl's, except in an update in which no term has a token: there momentum and weight decay alone would move the weights."""
        if self._bridge is not None and self._bridge.empty:
            self.optimizer_zero_grad()
            return 0.0
        return super().optimizer_step()

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        """One micro-batch: first the teachers' forward passes, without a graph; the student's head reads with them, chunk by chunk."""
        if self._bridge is None or (forward_only and not self._surveying):
            return super().forward_step(micro_batch, loss_function, forward_only)
        bridge, teachers, data = self._bridge, self._teachers, micro_batch.to(get_device_id())
        tu.assign_non_tensor(data, use_fused_kernels=False)  # those are for verl's own passes
        states = teachers.read(data)
        layout = self._layout(data, budget_of(data, self.ulysses_sequence_parallel_size))
        part = layout.part
        bridge.count(STUDENT, layout.tokens)

        def compare(hidden: Tensor, head: Head) -> dict[str, Any]:
            heads = teachers.heads(head)
            theirs = {
                context: HiddenStates(all_states[part.own], heads[context]) for context, all_states in states.items()
            }
            stats = bridge.stats(HiddenStates(hidden, head), theirs, data, part.own).mapped(part.gathered)
            return {"stats": stats, "with gradient": stats.with_gradient}

        with self._own_head.replaced(part.rows, compare, layout.inputs):
            loss, output = super().forward_step(data, loss_function, forward_only)
        del output["model_output"]  # verl joins those of a forward-only pass
        return loss, output

    def prepare_model_outputs(
        self, output: Any, output_args: Any, micro_batch: TensorDict, logits_processor_func: Any
    ) -> Any:
        """What ``Bridge`` reads, where our head ran in the place of the model's."""
        if isinstance(output, dict) and "stats" in output:
            return output
        return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
