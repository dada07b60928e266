"""Sequences side by side in one row, a prompt that several of them share only once, and the attention that keeps them apart.

A tree is a prompt (the trunk) and the completions that follow it (the branches). Everything in a transformer but its
attention looks at one token at a time, so a forest of trees runs through it as one row without padding:

    [ prompt 1 | completion | completion | prompt 2 | completion ]

with positions that begin anew at each prompt and go on from the prompt's end at each completion. In the attention a
completion sees its prompt and itself, which is what it would have seen alone: exact, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from onpolicy.trainer.micro_batches import Row, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "onpolicy_forest"
"""Under which transformers finds the attention."""
UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some models ask of their attention beside the scaled dot product."""


@dataclass(frozen=True)
class PrefixTree:
    """Lengths, in tokens."""

    trunk: int
    branches: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.trunk + sum(self.branches)


@dataclass(frozen=True)
class PackedTrees:
    """Trees side by side in one row."""

    trees: tuple[PrefixTree, ...]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        """[1, heads, S, D] -> the same; keys and values of as many heads as the query's."""
        rows, start = [], 0
        for tree in self.trees:
            q, k, v = (x[:, :, start : start + tree.size] for x in (query, key, value))
            trunk, *branches = zip(*(x.split([tree.trunk, *tree.branches], dim=2) for x in (q, k, v)), strict=True)
            rows.append(_attention(*trunk, scale=scale, window=window))
            for branch in branches:
                seen = (torch.cat(both, 2) for both in zip(trunk[1:], branch[1:], strict=True))
                rows.append(_attention(branch[0], *seen, scale=scale, window=window))
            start += tree.size
        return torch.cat(rows, 2)


def _attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
    """The queries stand at the end of the keys."""
    queries, keys = query.shape[2], key.shape[2]
    if window is None or window >= keys:
        if queries == keys:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return scaled_dot_product_attention(query, key, value, attn_mask=causal_lower_right(queries, keys), scale=scale)
    back = torch.arange(keys - queries, keys, device=query.device)[:, None] - torch.arange(keys, device=query.device)
    return scaled_dot_product_attention(query, key, value, attn_mask=(back >= 0) & (back < window), scale=scale)


def pack(rows: Sequence[Row]) -> tuple[PackedTrees, list[int], list[int], list[Tensor]]:
    """The forest of some rows: equal prompts become one trunk. Completions are left without their last token, which predicts nothing.

    Returns:
        the forest; the tokens of its row ``[S]``; their positions ``[S]``; for each row the places in ``[S]`` whose states
        predict its completion ``[T]``
    """
    together: dict[TokenIds, list[int]] = {}
    for number, (prompt, _) in enumerate(rows):
        together.setdefault(prompt, []).append(number)
    trees: list[PrefixTree] = []
    ids: list[int] = []
    positions: list[int] = []
    places: list[Tensor] = [torch.zeros(0)] * len(rows)
    for prompt, numbers in together.items():
        last = len(ids) + len(prompt) - 1
        branches = [rows[number][1][:-1] for number in numbers]
        ids += prompt
        positions += range(len(prompt))
        for number, branch in zip(numbers, branches, strict=True):
            places[number] = torch.tensor([last, *range(len(ids), len(ids) + len(branch))])
            ids += branch
            positions += range(len(prompt), len(prompt) + len(branch))
        trees.append(PrefixTree(len(prompt), tuple(map(len, branches))))
    return PackedTrees(tuple(trees)), ids, positions, places


def supports_prefix_sharing(model: PreTrainedModel) -> bool:
    """Whether every layer is attention that goes through transformers' interface and is the plain scaled dot product."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = not any(getattr(config, key, None) for key in ("attn_logit_softcapping", "alibi"))
    sdpa = config._attn_implementation in ("sdpa", NAME)
    backend = sdpa and getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_sdpa", False)
    return bool(backend and plain and layers <= {"full_attention", "sliding_attention"})


def prepare(model: PreTrainedModel) -> bool:
    """From now on the model runs forests too; whatever else it is given goes through its usual sdpa.

    Whether it does is tried on a few tokens. False, and the model is as it was, where they come out differently, where the
    model does not hand the forest on, or where it has windows of which its attention is not told.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _interface)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    if not _grows(model):
        model.set_attn_implementation(before)
        return False
    return True


@dataclass(frozen=True)
class _Probe(PackedTrees):
    """Remembers what the model's attention was told."""

    windows: set[int | None] = field(default_factory=set)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        self.windows.add(window)
        return super().attend(query, key, value, scale=scale, window=window)


@torch.no_grad()
def _grows(model: PreTrainedModel) -> bool:
    rows: list[Row] = [((1, 2, 3), (4, 5, 6)), ((1, 2, 3), (6, 4)), ((2,), (3, 5, 4, 6))]
    device, config = model.device, model.config.get_text_config()
    planted, ids, positions, places = pack(rows)
    probe = _Probe(planted.trees)
    try:
        together = run(
            model.base_model, probe, torch.tensor(ids, device=device), torch.tensor(positions, device=device)
        )
        for (prompt, completion), place in zip(rows, places, strict=True):
            alone = model.base_model(input_ids=torch.tensor([[*prompt, *completion]], device=device), use_cache=False)
            expected = alone.last_hidden_state[0, len(prompt) - 1 : -1]
            if not torch.allclose(
                together[place.to(device)], expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())
            ):
                return False
    except (
        RuntimeError,
        NotImplementedError,
        TypeError,
        ValueError,
        IndexError,
    ):  # a model may stumble over it anywhere
        return False
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return not windowed or probe.windows != {None}


def run(body: Any, forest: PackedTrees, ids: Tensor, positions: Tensor) -> Tensor:
    """Hidden states ``[S, H]`` of the forest's row."""
    # a mask of four dimensions is handed on as it is; this one says that the forest must have arrived beside it
    sign = torch.empty(1, 1, 0, 0, device=ids.device, dtype=torch.bool)
    output = body(
        input_ids=ids[None], position_ids=positions[None], attention_mask=sign, use_cache=False, forest=forest
    )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def _interface(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: ``[B, heads, S, D]`` -> ``[B, S, heads, D]``."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    forest = options.pop("forest", None)
    if forest is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise NotImplementedError(
                f"{type(module).__name__} does not hand options on to its attention: set trainer.layout=padded"
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if unknown := [name for name in UNKNOWN if options.get(name) is not None]:
        raise NotImplementedError(
            f"{type(module).__name__} asks for {unknown[0]}, which forests lack: set trainer.layout=padded"
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast positions are turned in float32
    attended = forest.attend(query, key, value, scale=options.get("scaling"), window=options.get("sliding_window"))
    return attended.transpose(1, 2).contiguous(), None
