"""Sequences packed into one row, a prompt that several of them share only once, and the attention that separates them.

A prefix tree is a prompt (the prefix) and the completions that follow it. Everything in a transformer but its attention
works on one token at a time, so several trees run through it as one row without padding:

    [ prompt 1 | completion | completion | prompt 2 | completion ]

Positions restart at 0 at each prompt and continue from the prompt's end at each completion. In the attention a completion
sees its prompt and itself, which is what it would have seen alone: exact in the forward and the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from onpolicy.trainer.micro_batches import Row, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "onpolicy_prefix_sharing"
"""The name under which the attention is registered with transformers."""
SMALLEST_BLOCK, LARGEST_BLOCK = 128, 1024
"""Queries of a sliding window that run together: as many as the window is long, within these."""
SHARING_ATTENTIONS = ("sdpa", ATTENTION_NAME)
"""Implementations of attention in whose place the packed one can run."""
FLASH_ATTENTIONS = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
"""More of them, for a model that keeps its own for everything but packed trees."""
UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Options that some models pass to their attention, beyond the scaled dot product."""
TEST_ROWS: Sequence[Row] = (((1, 2, 3), (4, 5, 6)), ((1, 2, 3), (6, 4)), ((2,), (3, 5, 4, 6)))
"""Packed and apart, a model has to give the same hidden states of them."""


@dataclass(frozen=True)
class PrefixTree:
    """Lengths, in tokens."""

    prefix: int
    completions: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.prefix + sum(self.completions)


@dataclass(frozen=True)
class PackedTrees:
    """Prefix trees next to each other in one row."""

    trees: tuple[PrefixTree, ...]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        """[1, heads, S, D] -> the same shape; keys and values must have as many heads as the query."""
        rows, start = [], 0
        for tree in self.trees:
            q, k, v = (x[:, :, start : start + tree.size] for x in (query, key, value))
            lengths = [tree.prefix, *tree.completions]
            prefix, *completions = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
            rows.append(self.one(*prefix, scale=scale, window=window))
            for completion in completions:
                seen = (torch.cat(both, 2) for both in zip(prefix[1:], completion[1:], strict=True))
                rows.append(self.one(completion[0], *seen, scale=scale, window=window))
            start += tree.size
        return torch.cat(rows, 2)

    def one(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        """Causal attention of a prefix or a completion; the queries belong to the last of the keys."""
        return _attention(query, key, value, scale=scale, window=window)


def _attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    if window is None or window >= keys:
        if queries == keys:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return scaled_dot_product_attention(query, key, value, attn_mask=causal_lower_right(queries, keys), scale=scale)
    return _windowed(query, key, value, scale=scale, window=window)


def _windowed(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int) -> Tensor:
    """Causal attention to the last ``window`` keys, a block of queries at a time, each over the keys that it can see alone.

    So the mask is one of a block, whatever the length, and the work grows with the length and not with its square.
    """
    queries, keys = query.shape[2], key.shape[2]
    size = max(SMALLEST_BLOCK, min(window, LARGEST_BLOCK))
    blocks, masks = [], {}
    for start in range(0, max(queries, 1), size):  # a completion of one token has no queries
        block = query[:, :, start : start + size]
        last = keys - queries + start + block.shape[2]  # the last key that it sees, plus one
        first = max(0, last - block.shape[2] - window + 1)
        shape = block.shape[2], last - first
        if shape not in masks:
            masks[shape] = _window_mask(*shape, window, query.device)
        seen = key[:, :, first:last], value[:, :, first:last]
        blocks.append(scaled_dot_product_attention(block, *seen, attn_mask=masks[shape], scale=scale))
    return torch.cat(blocks, 2)


def _window_mask(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """[queries, keys] where a query sees a key; the queries belong to the last of the keys."""
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (back >= 0) & (back < window)


def pack(rows: Sequence[Row]) -> tuple[PackedTrees, list[int], list[int], list[Tensor]]:
    """Packs rows, equal prompts once. Completions are packed without their last token, which predicts nothing.

    Returns:
        the trees; the tokens of the packed row ``[S]``; their positions ``[S]``; for each row the columns of ``[S]`` whose
        hidden states predict its completion ``[T]``
    """
    by_prompt: dict[TokenIds, list[int]] = {}
    for number, (prompt, _) in enumerate(rows):
        by_prompt.setdefault(prompt, []).append(number)
    trees: list[PrefixTree] = []
    ids: list[int] = []
    positions: list[int] = []
    columns: list[Tensor] = [torch.zeros(0)] * len(rows)
    for prompt, numbers in by_prompt.items():
        last = len(ids) + len(prompt) - 1
        completions = [rows[number][1][:-1] for number in numbers]
        ids += prompt
        positions += range(len(prompt))
        for number, completion in zip(numbers, completions, strict=True):
            predicting = [last, *range(len(ids), len(ids) + len(completion))]
            columns[number] = torch.tensor(
                predicting[: len(rows[number][1])], dtype=torch.long
            )  # an empty completion has none
            ids += completion
            positions += range(len(prompt), len(prompt) + len(completion))
        trees.append(PrefixTree(len(prompt), tuple(map(len, completions))))
    return PackedTrees(tuple(trees)), ids, positions, columns


def supports_prefix_sharing(model: PreTrainedModel, attentions: Collection[str] = SHARING_ATTENTIONS) -> bool:
    """Whether every layer is plain scaled dot-product attention that goes through transformers' attention interface.

    Args:
        attentions: implementations that the model may have
    """
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = not any(getattr(config, key, None) for key in ("attn_logit_softcapping", "alibi"))
    known = config._attn_implementation in attentions
    backend = known and getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_sdpa", False)
    return bool(backend and plain and layers <= {"full_attention", "sliding_attention"})


def enable_prefix_sharing(model: PreTrainedModel) -> bool:
    """Makes the model accept packed trees; any other input still goes through its usual sdpa.

    Tested on a few tokens. Returns False, and leaves the model as it was, if the packed results differ, if the model does not
    pass the trees on to its attention, or if it has sliding windows that its attention is not told about.
    """
    before = model.config._attn_implementation
    use_packed_attention(model)
    if not _self_test(model):
        model.set_attn_implementation(before)
        return False
    return True


def use_packed_attention(model: PreTrainedModel) -> None:
    """``enable_prefix_sharing`` without its test, for a model that cannot be run: it has no weights."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, _interface)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    model.set_attn_implementation(ATTENTION_NAME)


def use_packed_attention_beside(model: PreTrainedModel) -> None:
    """``use_packed_attention`` for a model that has to keep the name of its attention: the packed one runs where trees come with the input.

    It concerns all models of this process with the same attention, and changes nothing for those that never get trees.
    """
    from transformers import AttentionInterface

    name = model.config.get_text_config()._attn_implementation
    own = AttentionInterface()[name]
    if getattr(own, "func", None) is not _interface:
        AttentionInterface.register(name, partial(_interface, own=own))


@dataclass(frozen=True)
class WindowProbe(PackedTrees):
    """Records the windows that the model passes to its attention."""

    windows: set[int | None] = field(default_factory=set)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        self.windows.add(window)
        return super().attend(query, key, value, scale=scale, window=window)

    def is_told(self, model: PreTrainedModel) -> bool:
        """Whether the model's attention is told about the sliding windows that the model has."""
        config = model.config.get_text_config()
        windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        return not windowed or self.windows != {None}


@torch.no_grad()
def _self_test(model: PreTrainedModel) -> bool:
    rows, device = TEST_ROWS, model.device
    packed, ids, positions, columns = pack(rows)
    probe = WindowProbe(packed.trees)
    try:
        hidden = forward_packed(
            model.base_model, probe, torch.tensor(ids, device=device), torch.tensor(positions, device=device)
        )
        for (prompt, completion), own in zip(rows, columns, strict=True):
            alone = model.base_model(input_ids=torch.tensor([[*prompt, *completion]], device=device), use_cache=False)
            expected = alone.last_hidden_state[0, len(prompt) - 1 : -1]
            atol = 1e-2 * float(expected.abs().max())
            if not torch.allclose(hidden[own.to(device)], expected, rtol=1e-2, atol=atol):
                return False
    except (
        RuntimeError,
        NotImplementedError,
        TypeError,
        ValueError,
        IndexError,
    ):  # an unsuited model may fail anywhere
        return False
    return probe.is_told(model)


def forward_packed(body: Any, packed_trees: PackedTrees, ids: Tensor, positions: Tensor) -> Tensor:
    """Hidden states ``[S, H]`` of a packed row."""
    return body(**packed_inputs(packed_trees, ids, positions)).last_hidden_state[0]  # type: ignore[no-any-return]


def packed_inputs(packed_trees: PackedTrees, ids: Tensor, positions: Tensor) -> dict[str, Any]:
    """What a model is called with for a packed row; ids and positions are ``[S]``."""
    # transformers passes a mask of four dimensions on as it is; an empty one tells the attention that trees must come with it
    sentinel_mask = torch.empty(1, 1, 0, 0, device=ids.device, dtype=torch.bool)
    return {
        "input_ids": ids[None],
        "position_ids": positions[None],
        "attention_mask": sentinel_mask,
        "use_cache": False,
        "packed_trees": packed_trees,
    }


def _interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    own: Callable[..., Any] | None = None,
    **options: Any,
) -> Any:
    """transformers' attention interface: ``[B, heads, S, D]`` -> ``[B, S, heads, D]``.

    Args:
        own: what runs without trees; None: transformers' sdpa
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    trees = options.pop("packed_trees", None)
    if trees is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise NotImplementedError(
                f"{type(module).__name__} does not pass options on to its attention: set trainer.layout=padded"
            )
        return (own or sdpa_attention_forward)(module, query, key, value, attention_mask, **options)
    if unsupported := [name for name in UNSUPPORTED if options.get(name) is not None]:
        raise NotImplementedError(
            f"{type(module).__name__} passes {unsupported[0]} to its attention, which prefix sharing does not support: "
            "set trainer.layout=padded"
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast positions are turned in float32
    attended = trees.attend(query, key, value, scale=options.get("scaling"), window=options.get("sliding_window"))
    return attended.transpose(1, 2).contiguous(), None
