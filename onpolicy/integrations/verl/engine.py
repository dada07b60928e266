"""verl's FSDP2 engine, with our loss and a head that runs at sampled tokens only, some of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from onpolicy.integrations.verl.bridge import Bridge
from onpolicy.integrations.verl.own_head import OwnHead
from onpolicy.integrations.verl.rows import packed_places, sampled
from onpolicy.integrations.verl.sequence_parts import Part, part_of
from onpolicy.trainer.head import Head, HeadLike, HiddenStates
from onpolicy.utils.errors import ModelError

HEAD_TOLERANCE = 0.02
"""Of the largest logit: bfloat16 rounds."""
Row = tuple[Tensor, Tensor, Tensor]
"""A prompt, the response after it, and which of its tokens were sampled (bool)."""


class TeacherReader(Protocol):
    """What the engine needs of ``teachers.Teachers``."""

    def read(self, data: TensorDict) -> Mapping[str, Tensor]:
        """The teachers' hidden states ``[N, H]`` at a micro-batch's sampled tokens, by context."""
        ...

    def heads(self, student: Head) -> Mapping[str, HeadLike]:
        """What makes logits of them."""
        ...

    def forget(self) -> None:
        """Frees what is kept from one micro-batch to the next."""
        ...


class TeachingEngine(FSDPEngineWithLMHead):  # type: ignore[misc]
    """A student that learns from teachers once ``learn`` was called; verl's own engine until then and in verl's forward-only passes."""

    head: Head | None = None
    """The head of a model that is read as a teacher or reference, whole and in what it computes in; until ``forget_head``."""
    _own_head: OwnHead
    _bridge: Bridge | None = None
    _teachers: TeacherReader
    _surveying = False
    """Whether the pass under way is forward only and read by teachers all the same."""

    def learn(self, bridge: Bridge, teachers: TeacherReader) -> None:
        """From now on every update uses this loss."""
        self._bridge, self._teachers = bridge, teachers

    @torch.no_grad()
    def check_head(self) -> None:
        """Raises ModelError where the model computes other logits than ``onpolicy.trainer.head`` makes of its hidden states."""
        ids = torch.arange(8, device=get_device_id())
        row = (ids[:1], ids[1:], torch.ones_like(ids[1:], dtype=torch.bool))
        data = _batch([row], packed=self.use_remove_padding, vocabulary=self._vocabulary)
        with self.eval_mode():
            part = self._part(data)
            own = self._run(data).logits.flatten(0, -2)[part.rows].float()
            with self._own_head.replaced(part.rows, lambda hidden, head: head.logits(hidden)):
                ours = self._run(data).float()
        error, size = (float(x.abs().max()) if len(x) else 0.0 for x in (ours - own, own))
        if not error <= HEAD_TOLERANCE * max(size, 1.0):
            raise ModelError(
                f"actor_rollout_ref.model.path: {type(self.module).__name__}: logits computed from hidden states are off by {error:.3g} of "
                f"{size:.3g}; its head scales them in a way not known here"
            )

    def _build_fsdp_module(self, module: Any) -> Any:
        """A reference model is streamed from the CPU, layer by layer, only if ``ref.fsdp_config.param_offload`` says so.

        verl always does, which suits one pass a step; a teacher is read again in every micro-batch.
        """
        self._own_head = OwnHead(module)
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
        try:
            if self._bridge.needs_survey:
                self._survey(data, self._bridge)
            output = super().forward_backward_batch(data, loss_function, forward_only)
        finally:
            self._teachers.forget()
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
        """One micro-batch: first the teachers' forward passes, without a graph; the student's head reads with them, chunk by chunk."""
        if self._bridge is None or (forward_only and not self._surveying):
            return super().forward_step(micro_batch, loss_function, forward_only)
        bridge, teachers, data = self._bridge, self._teachers, micro_batch.to(get_device_id())
        tu.assign_non_tensor(data, use_fused_kernels=False)  # those are for verl's own passes
        states, part = teachers.read(data), self._part(data)

        def compare(hidden: Tensor, head: Head) -> dict[str, Any]:
            heads = teachers.heads(head)
            theirs = {
                context: HiddenStates(all_states[part.own], heads[context]) for context, all_states in states.items()
            }
            stats = bridge.stats(HiddenStates(hidden, head), theirs, data, part.own).mapped(part.gathered)
            return {"stats": stats, "with gradient": stats.with_gradient}

        with self._own_head.replaced(part.rows, compare):
            loss, output = super().forward_step(data, loss_function, forward_only)
        del output["model_output"]  # verl joins those of a forward-only pass
        return loss, output

    def prepare_model_inputs(self, micro_batch: TensorDict) -> Any:
        """Log-probabilities are the model's own, at temperature 1, whatever temperature it was sampled with."""
        tu.assign_non_tensor(micro_batch, temperature=1.0)
        return super().prepare_model_inputs(micro_batch)

    def prepare_model_outputs(
        self, output: Any, output_args: Any, micro_batch: TensorDict, logits_processor_func: Any
    ) -> Any:
        """What ``Bridge`` reads, where our head ran in the place of the model's."""
        if isinstance(output, dict) and "stats" in output:
            return output
        return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)

    @torch.no_grad()
    def response_states(
        self, rows: Sequence[Row | None], like: TensorDict, *, rounds: Any, plain: bool = False
    ) -> Tensor:
        """The hidden states that predict the sampled tokens of all rows, row after row, under this engine's weights.

        Args:
            rows: None for one whose prompt is not read, whose tokens get zeros
            like: a micro-batch whose settings hold: layout, and how many tokens may be read at once
            rounds: (passes this rank needs) -> passes that all ranks make, as FSDP has to gather together
            plain: without adapters

        Returns:
            ``[N, H]`` with all rows' sampled tokens in N, in what the model computes in
        """
        counts = [int(mask.sum()) for mask in like["response_mask"].unbind()]
        given = [(place, row) for place, row in enumerate(rows) if row is not None and counts[place]]
        lengths = [len(prompt) + len(response) for _, (prompt, response, _) in given]
        chunks = list(_chunks(lengths, _budget(like, self.ulysses_sequence_parallel_size)))
        keeps = self.engine_config.forward_only or (plain and self._own_head.adapted)
        # before any pass: FSDP matches all-gathers by their order, so no other collective may come between them
        passes = rounds(len(chunks)) or int(keeps and self.head is None)
        found = torch.zeros(sum(counts), self.width, dtype=self._computes_in, device=get_device_id())
        parts = found.split(counts)
        with self._without_adapter() if plain else nullcontext():
            for numbers in chunks:
                places, chosen = zip(*(given[i] for i in numbers), strict=True)
                states = self._read(chosen, like, keeps=keeps)
                for place, own in zip(places, states.split([counts[place] for place in places]), strict=True):
                    parts[place].copy_(own)
            for _ in range(passes - len(chunks)):
                token = torch.zeros(1, dtype=torch.long, device=get_device_id())
                self._read([(token, token, token.bool())], like, keeps=keeps)
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what was gathered is stale once the weights have moved
        return found

    def forget_head(self) -> None:
        self.head = None

    def _read(self, rows: Sequence[Row], like: TensorDict, *, keeps: bool) -> Tensor:
        """The hidden states at the rows' sampled tokens; keeps the head if there is none yet and it is to be kept."""

        def states(hidden: Tensor, head: Head) -> Tensor:
            if keeps and self.head is None:
                self.head = replace(head, weight=_copy(head.weight), bias=_copy(head.bias))
            return hidden

        data = _batch(rows, packed=_is_packed(like), vocabulary=self._vocabulary)
        part = self._part(data)
        with self._own_head.replaced(part.rows, states):
            return part.gathered(self._run(data))

    def _run(self, data: TensorDict) -> Any:
        """What the model returns for a batch."""
        inputs, _ = super().prepare_model_inputs(data)
        dtype = self._computes_in
        with torch.autocast(get_device_name(), dtype, enabled=dtype != torch.float32):
            return self.module(**inputs, use_cache=False)

    def _part(self, data: TensorDict) -> Part:
        """Which of a batch's sampled tokens this rank reads."""
        return part_of(_places(data)[sampled(data)], len(data["input_ids"].values()), self.ulysses_parallel_group)

    @property
    def _vocabulary(self) -> int:
        return int(self.module.config.get_text_config().vocab_size)

    @property
    def width(self) -> int:
        """H."""
        return int(self.module.config.get_text_config().hidden_size)

    @property
    def _computes_in(self) -> torch.dtype:
        return getattr(self, "_autocast_dtype", torch.bfloat16)

    def _without_adapter(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.disable_adapter()
        return context


def _is_packed(data: TensorDict) -> bool:
    return bool(tu.get_non_tensor_data(data=data, key="use_remove_padding", default=True))


def _budget(like: TensorDict, ranks: int) -> int:
    """Tokens that a teacher may read at once: as many as verl lets the student read, or has put into this micro-batch.

    Args:
        ranks: that share a batch
    """
    limit = tu.get_non_tensor_data(data=like, key="max_token_len_per_gpu", default=None) or 0
    return max(int(limit) * ranks, len(like["input_ids"].values()))


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


def _batch(rows: Sequence[Row], *, packed: bool, vocabulary: int) -> TensorDict:
    """Rows as verl lays them out.

    Models of one family pad their tables of embeddings to different lengths: an id beyond this model's, which no text has but a student
    with a longer table may sample, is read as the last.
    """
    prompts, responses, masks = zip(*rows, strict=True)
    joined = [torch.cat([p, r]).clamp(max=vocabulary - 1) for p, r in zip(prompts, responses, strict=True)]
    data = TensorDict(
        {
            "input_ids": _nested(joined),
            "position_ids": _nested([torch.arange(len(ids), device=ids.device) for ids in joined]),
            "prompts": _nested(prompts),
            "responses": _nested(responses),
            "response_mask": _nested(masks),
        },
        batch_size=len(joined),
    )
    tu.assign_non_tensor(data, temperature=1.0, use_remove_padding=packed)
    return data


def _nested(rows: Sequence[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def _places(data: TensorDict) -> Tensor:
    """[all T] where the states that predict response tokens stand among all positions of a batch."""
    places = packed_places(data)
    if _is_packed(data):
        return places
    lengths = data["prompts"].offsets().diff() + data["responses"].offsets().diff()
    padding = (lengths.max() - lengths).cumsum(0).roll(1)
    padding[0] = 0  # before each row, that of the rows above
    return places + padding.repeat_interleave(data["responses"].offsets().diff())


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()
