"""verl's FSDP2 engine, whose model can be asked for its hidden states at sampled tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from onpolicy.integrations.verl.own_head import OwnHead
from onpolicy.integrations.verl.rows import packed_places, sampled
from onpolicy.integrations.verl.sequence_parts import Part, part_of
from onpolicy.integrations.verl.shared_prompts import BUDGET, Count, count_apart, in_passes, shared, why_apart
from onpolicy.trainer.head import Head
from onpolicy.trainer.prefix_sharing import TEST_ROWS, WindowProbe, use_packed_attention_beside
from onpolicy.utils.errors import ModelError, first_line

HEAD_TOLERANCE = 0.02
"""Of the largest logit: bfloat16 rounds."""
SHARING_TOLERANCE = 0.05
"""Of the largest hidden state, which has been through all layers in bfloat16."""
Row = tuple[Tensor, Tensor, Tensor]
"""A prompt, the response after it, and which of its tokens were sampled (bool)."""


@dataclass(frozen=True)
class Layout:
    """How a batch is run."""

    part: Part
    """Where the states that predict its sampled tokens are."""
    inputs: Mapping[str, Any] | None
    """What the model is called with; None: as verl calls it."""
    tokens: Count


class ReadingEngine(FSDPEngineWithLMHead):  # type: ignore[misc]
    """verl's own engine, and beside it what reads hidden states."""

    head: Head | None = None
    """The head of a model that is read as a teacher or reference, whole and in what it computes in; for one update."""
    read_tokens = Count()
    """What ``response_states`` has read."""
    _own_head: OwnHead
    shares = False
    """Whether a prompt that rows share is read once."""

    @torch.no_grad()
    def check_head(self) -> None:
        """Raises ModelError where the model computes other logits than ``onpolicy.trainer.head`` makes of its hidden states."""
        ids = torch.arange(8, device=get_device_id())
        row = (ids[:1], ids[1:], torch.ones_like(ids[1:], dtype=torch.bool))
        data = _batch([row], packed=self.use_remove_padding, vocabulary=self._vocabulary)
        with self.eval_mode():
            part = self._layout(data, budget=0).part
            own = self._run(data).logits.flatten(0, -2)[part.rows].float()
            with self._own_head.replaced(part.rows, lambda hidden, head: head.logits(hidden)):
                ours = self._run(data).float()
        error, size = (float(x.abs().max()) if len(x) else 0.0 for x in (ours - own, own))
        if not error <= HEAD_TOLERANCE * max(size, 1.0):
            raise ModelError(
                f"actor_rollout_ref.model.path: {type(self.module).__name__}: logits computed from hidden states are off by {error:.3g} of "
                f"{size:.3g}; its head scales them in a way not known here"
            )

    @torch.no_grad()
    def share_prompts(self) -> str | None:
        """From now on a prompt that several rows share is read once where that pays; returns why not, if this model cannot."""
        model = self._own_head.model
        if (why := why_apart(model, self.ulysses_sequence_parallel_size)) is not None:
            return why
        use_packed_attention_beside(model)
        rows = [tuple(torch.tensor(ids, device=get_device_id()) for ids in row) for row in TEST_ROWS]
        data = _batch(
            [(prompt, answer, torch.ones_like(answer).bool()) for prompt, answer in rows],
            packed=self.use_remove_padding,
            vocabulary=self._vocabulary,
        )
        with self.eval_mode():
            apart = self._states(data, self._layout(data, budget=0))
            once, tokens = shared(data, budget=0, trees=WindowProbe)
            assert once is not None
            try:
                found = self._states(data, Layout(Part(once.rows, slice(None)), once.inputs, tokens))
            except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError) as error:
                return f"{type(model).__name__}: {first_line(error)}"
        off, size = float((found - apart).abs().max()), float(apart.abs().max())
        if not off <= SHARING_TOLERANCE * size:
            return f"{type(model).__name__}: hidden states are off by {off:.3g} of {size:.3g} where a prompt is shared"
        if not once.inputs["packed_trees"].is_told(model):
            return f"{type(model).__name__} has sliding windows that its attention is not told about"
        self.shares = True
        return None

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

    def prepare_model_inputs(self, micro_batch: TensorDict) -> Any:
        """Log-probabilities are the model's own, at temperature 1, whatever temperature it was sampled with."""
        tu.assign_non_tensor(micro_batch, temperature=1.0)
        return super().prepare_model_inputs(micro_batch)

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
        budget = budget_of(like, self.ulysses_sequence_parallel_size)
        if self.shares:
            ids = [(tuple(prompt.tolist()), tuple(response.tolist())) for _, (prompt, response, _) in given]
            chunks = in_passes(ids, budget)
        else:
            chunks = list(_chunks([len(prompt) + len(response) for _, (prompt, response, _) in given], budget))
        keeps = self.engine_config.forward_only or (plain and self._own_head.adapted)
        # before any pass: FSDP matches all-gathers by their order, so no other collective may come between them
        passes = rounds(len(chunks)) or int(keeps and self.head is None)
        found = torch.zeros(sum(counts), self.width, dtype=self._computes_in, device=get_device_id())
        parts = found.split(counts)
        adapters: AbstractContextManager[Any] = self.disable_adapter() if plain else nullcontext()
        with adapters:
            for numbers in chunks:
                places, chosen = zip(*(given[i] for i in numbers), strict=True)
                states = self._read(chosen, like, budget, keeps=keeps)
                for place, own in zip(places, states.split([counts[place] for place in places]), strict=True):
                    parts[place].copy_(own)
            for _ in range(passes - len(chunks)):
                token = torch.zeros(1, dtype=torch.long, device=get_device_id())
                self._read([(token, token, token.bool())], like, budget, keeps=keeps)
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what was gathered is stale once the weights have moved
        return found

    def _read(self, rows: Sequence[Row], like: TensorDict, budget: int, *, keeps: bool) -> Tensor:
        """The hidden states at the rows' sampled tokens; keeps the head if there is none yet and it is to be kept."""
        data = _batch(rows, packed=_is_packed(like), vocabulary=self._vocabulary)
        layout = self._layout(data, budget)
        self.read_tokens += layout.tokens
        return self._states(data, layout, keeps=keeps)

    def _states(self, data: TensorDict, layout: Layout, *, keeps: bool = False) -> Tensor:
        def states(hidden: Tensor, head: Head) -> Tensor:
            if keeps and self.head is None:
                self.head = replace(head, weight=_copy(head.weight), bias=_copy(head.bias))
            return hidden

        with self._own_head.replaced(layout.part.rows, states, layout.inputs):
            return layout.part.gathered(self._run(data))

    def _run(self, data: TensorDict) -> Any:
        """What the model returns for a batch."""
        inputs, _ = super().prepare_model_inputs(data)
        dtype = self._computes_in
        with torch.autocast(get_device_name(), dtype, enabled=dtype != torch.float32):
            return self.module(**inputs, use_cache=False)

    def _layout(self, data: TensorDict, budget: int) -> Layout:
        """How a batch is run of which so many tokens may be computed at once."""
        found, tokens = shared(data, budget) if self.shares else (None, count_apart(data))
        if found is not None:
            return Layout(Part(found.rows, slice(None)), found.inputs, tokens)
        places, positions = _places(data)[sampled(data)], len(data["input_ids"].values())
        return Layout(part_of(places, positions, self.ulysses_parallel_group), None, tokens)

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


def _is_packed(data: TensorDict) -> bool:
    return bool(tu.get_non_tensor_data(data=data, key="use_remove_padding", default=True))


def budget_of(like: TensorDict, ranks: int) -> int:
    """Tokens that may be computed at once: as many as verl lets the student read, or has put into this micro-batch.

    Args:
        ranks: that share a batch
    """
    if (budget := tu.get_non_tensor_data(data=like, key=BUDGET, default=None)) is not None:
        return int(budget)
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
