"""verl's FSDP2 engine, with our loss and a head that runs at sampled tokens only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from onpolicy.integrations.verl.bridge import Bridge
from onpolicy.trainer.head import Head, HiddenStates


class TeacherReader(Protocol):
    """What the engine needs of ``teachers.Teachers``."""

    def read(self, data: TensorDict) -> dict[str, HiddenStates]:
        """The teachers' logits at a micro-batch's sampled tokens, by context."""
        ...


class TeachingEngine(FSDPEngineWithLMHead):  # type: ignore[misc]
    """A student that learns from teachers once ``learn`` was called; verl's own engine until then and in verl's forward-only passes."""

    _bridge: Bridge | None = None
    _teachers: TeacherReader
    _teacher_states: dict[str, HiddenStates] | None = None
    """The teachers' outputs for the current micro-batch."""
    _surveying = False
    """Whether the pass under way is forward only and read by teachers all the same."""

    def learn(self, bridge: Bridge, teachers: TeacherReader) -> None:
        """From now on every update uses this loss."""
        self._bridge, self._teachers = bridge, teachers

    def _build_fsdp_module(self, module: Any) -> Any:
        """A reference model is streamed from the CPU, layer by layer, only if ``ref.fsdp_config.param_offload`` says so.

        verl always does, which suits one pass a step; a teacher is read again in every micro-batch.
        """
        config = self.engine_config
        if not config.forward_only or config.param_offload:
            return super()._build_fsdp_module(module)
        config.forward_only = False
        try:
            return super()._build_fsdp_module(module)
        finally:
            config.forward_only = True

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        """The gradient of one optimizer update."""
        if forward_only or self._bridge is None:
            return super().forward_backward_batch(data, loss_function, forward_only)
        self._bridge.begin(data)
        if self._bridge.needs_survey:
            self._survey(data, self._bridge)
        output = super().forward_backward_batch(data, loss_function, forward_only)
        output["metrics"].update(self._bridge.end())
        return output

    def _survey(self, data: TensorDict, bridge: Bridge) -> None:
        """Student and teachers read the update without a graph, in the micro-batches in which it is trained."""
        self._surveying = True
        try:
            super().forward_backward_batch(data, bridge.survey, forward_only=True)
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
        """One micro-batch: first the teachers' forward passes, without a graph."""
        if self._bridge is None or (forward_only and not self._surveying):
            return super().forward_step(micro_batch, loss_function, forward_only)
        self._teacher_states = self._teachers.read(micro_batch.to(get_device_id()))
        try:
            loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        finally:
            self._teacher_states = None
        del output[
            "model_output"
        ]  # all micro-batches' logits would not fit, and verl joins those of a forward-only pass
        return loss, output

    def prepare_model_inputs(self, micro_batch: TensorDict) -> Any:
        """Log-probabilities are the model's own, at temperature 1, whatever temperature it was sampled with."""
        tu.assign_non_tensor(micro_batch, temperature=1.0)
        inputs, arguments = super().prepare_model_inputs(micro_batch)
        if self._teacher_states is not None and _is_packed(micro_batch):
            inputs["logits_to_keep"] = _packed_rows(micro_batch["prompts"], micro_batch["responses"])
        return inputs, arguments

    def prepare_model_outputs(
        self, output: Any, output_args: Any, micro_batch: TensorDict, logits_processor_func: Any
    ) -> Any:
        """The student's and the teachers' logits at the sampled tokens, for ``Bridge``."""
        if self._teacher_states is None:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        logits = _rows(output.logits, micro_batch)[sampled(micro_batch)]
        return {"student": HiddenStates(logits, Head()), "teachers": self._teacher_states}

    @torch.no_grad()
    def response_logits(
        self,
        prompts: Sequence[Tensor],
        responses: Sequence[Tensor],
        like: TensorDict,
        *,
        rounds: Any,
        plain: bool = False,
    ) -> list[Tensor]:
        """The logits ``[T, V]`` that predict each response after its prompt, under this engine's weights.

        Args:
            like: a micro-batch whose settings hold: layout, and how many tokens may be read at once
            rounds: (passes this rank needs) -> passes that all ranks make, as FSDP has to gather together
            plain: without adapters
        """
        lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
        chunks = list(_chunks(lengths, _budget(like)))
        # before any pass: FSDP matches all-gathers by their order, so no other collective may come between them
        idle = rounds(len(chunks)) - len(chunks)
        found: list[Tensor] = [torch.empty(0)] * len(lengths)
        with self._without_adapter() if plain else nullcontext():
            for numbers in chunks:
                logits = self._read([prompts[i] for i in numbers], [responses[i] for i in numbers], like)
                for i, own in zip(numbers, logits.split([len(responses[i]) for i in numbers]), strict=True):
                    found[i] = own
            for _ in range(idle):
                token = torch.zeros(1, dtype=torch.long, device=get_device_id())
                self._read([token], [token], like)
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what was gathered is stale once the weights have moved
        return found

    def _read(self, prompts: Sequence[Tensor], responses: Sequence[Tensor], like: TensorDict) -> Tensor:
        data = _batch(prompts, responses, packed=_is_packed(like))
        inputs, _ = super().prepare_model_inputs(data)
        if _is_packed(like):
            inputs["logits_to_keep"] = _packed_rows(data["prompts"], data["responses"])
        dtype = getattr(self, "_autocast_dtype", torch.bfloat16)
        with torch.autocast(get_device_name(), dtype, enabled=dtype != torch.float32):
            return _rows(self.module(**inputs, use_cache=False).logits, data)

    def _without_adapter(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.disable_adapter()
        return context


def sampled(data: TensorDict) -> Tensor:
    """[all T] bool: which response tokens were sampled, row after row."""
    mask: Tensor = data["response_mask"].values().bool()
    return mask


def _is_packed(data: TensorDict) -> bool:
    return bool(tu.get_non_tensor_data(data=data, key="use_remove_padding", default=True))


def _budget(like: TensorDict) -> int:
    """Tokens that a teacher may read at once: as many as verl lets the student read, or has put into this micro-batch."""
    limit = tu.get_non_tensor_data(data=like, key="max_token_len_per_gpu", default=None) or 0
    return max(int(limit), len(like["input_ids"].values()))


def _chunks(lengths: Sequence[int], budget: int) -> Iterable[list[int]]:
    """Numbers of rows that are read together; one over the budget alone.

    Where all fit they stay as they are: a teacher with the student's prompts then computes exactly the student's numbers.
    """
    if sum(lengths) <= budget:
        yield from [list(range(len(lengths)))] if lengths else []
        return
    chunk: list[int] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if chunk and tokens + lengths[number] > budget:
            yield chunk
            chunk, tokens = [], 0
        chunk.append(number)
        tokens += lengths[number]
    yield chunk


def _batch(prompts: Sequence[Tensor], responses: Sequence[Tensor], *, packed: bool) -> TensorDict:
    """Rows as verl lays them out."""
    joined = [torch.cat([p, r]) for p, r in zip(prompts, responses, strict=True)]
    data = TensorDict(
        {
            "input_ids": _nested(joined),
            "position_ids": _nested([torch.arange(len(ids), device=ids.device) for ids in joined]),
            "prompts": _nested(prompts),
            "responses": _nested(responses),
        },
        batch_size=len(joined),
    )
    tu.assign_non_tensor(data, temperature=1.0, use_remove_padding=packed)
    return data


def _nested(rows: Sequence[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def _places(prompts: Any, responses: Any, starts: Tensor) -> Tensor:
    """Where the logits that predict response tokens stand: one before each, as the alignment rule has it."""
    first = starts + prompts.offsets().diff() - 1
    lengths = responses.offsets().diff()
    within = torch.arange(int(lengths.sum()), device=lengths.device) - (lengths.cumsum(0) - lengths).repeat_interleave(
        lengths
    )
    places: Tensor = first.repeat_interleave(lengths) + within
    return places


def _packed_rows(prompts: Any, responses: Any) -> Tensor:
    lengths: Tensor = prompts.offsets().diff() + responses.offsets().diff()
    return _places(prompts, responses, lengths.cumsum(0) - lengths)


def _rows(logits: Tensor, data: TensorDict) -> Tensor:
    """[all T, V], row after row; packed logits hold only the positions asked for."""
    if _is_packed(data):
        return logits[0]
    starts = torch.arange(len(logits), device=logits.device) * logits.shape[1]
    return logits.flatten(0, 1)[_places(data["prompts"], data["responses"], starts)]
