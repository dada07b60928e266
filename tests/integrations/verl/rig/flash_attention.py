"""Flash attention on a CPU: an exact function of the same signature. verl's sequence parallelism patches flash attention alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

calls: list[tuple[int, int]] = []
"""(tokens, heads) of the queries of each call."""


def exact(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    query_length: int,
    *,
    position_ids: Tensor | None = None,
    softmax_scale: float | None = None,
    **named: Any,
) -> Tensor:
    """Causal attention within each sequence of a packed batch ``[1, S, heads, D]``, which begins where its position is 0."""
    assert position_ids is not None and len(query) == 1 and attention_mask is None
    calls.append((query.shape[1], query.shape[2]))
    starts = (position_ids[0] == 0).nonzero()[:, 0].tolist()
    found = []
    for start, end in zip(starts, [*starts[1:], query.shape[1]], strict=True):
        q, k, v = (x[:, start:end].transpose(1, 2) for x in (query, key, value))
        found.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=True))
    return torch.cat(found, 2).transpose(1, 2)


def install() -> None:
    """Makes transformers and verl believe that flash attention is here, and verl call this function."""
    import transformers.modeling_utils
    import verl.models.transformers.monkey_patch as theirs

    theirs._flash_attention_forward = exact
    transformers.modeling_utils.lazy_import_flash_attention = lambda *arguments, **named: None
    transformers.PreTrainedModel._flash_attn_can_dispatch = lambda *arguments, **named: True
