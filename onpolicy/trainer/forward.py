"""One forward pass: from a micro-batch to the hidden states that predict its completion tokens.

The body of the model runs on whole sequences; its head runs later and only on sampled tokens
(``onpolicy.trainer.chunked_head``). The shift of the alignment rule is applied here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onpolicy.trainer import prefix_sharing
from onpolicy.trainer.head import HiddenStates, head_of, head_weights
from onpolicy.trainer.micro_batches import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layout = Literal["padded", "packed"]


def completion_states(
    model: PreTrainedModel, rows: Sequence[Row], *, layout: Layout = "padded", body: Callable[..., Any] | None = None
) -> HiddenStates:
    """What ``completion_hidden`` returns, with the model's head; it has the same arguments."""
    hidden = completion_hidden(model, rows, layout=layout, body=body)
    return HiddenStates(hidden=hidden, head=head_of(model), weights=head_weights(model))


def completion_hidden(
    model: PreTrainedModel, rows: Sequence[Row], *, layout: Layout = "padded", body: Callable[..., Any] | None = None
) -> Tensor:
    """``[N, H]``, the hidden states that predict every token of the rows' completions, N together, row after row.

    Args:
        model: a causal language model of transformers; for ``packed`` it must have been through ``prefix_sharing.enable_prefix_sharing``
        rows: prompts and completions
        layout: ``padded`` runs the rows as they are; ``packed`` runs them as one row without padding, equal prompts once
        body: runs the model without its head; None: the model itself
    """
    return (_padded if layout == "padded" else _packed)(body or model.base_model, rows, model.device)


def _padded(body: Callable[..., Any], rows: Sequence[Row], device: torch.device) -> Tensor:
    """``[pad.. prompt | completion ..pad]``: all prompts end, and all completions start, in the same column."""
    left, right = (max(map(len, column)) for column in zip(*rows, strict=True))
    ids = torch.zeros(len(rows), left + right, dtype=torch.long)
    real = torch.zeros_like(ids)
    for i, (prompt, completion) in enumerate(rows):
        columns = slice(left - len(prompt), left + len(completion))
        ids[i, columns], real[i, columns] = torch.tensor([*prompt, *completion]), 1
    hidden = body(
        input_ids=ids.to(device),
        attention_mask=real.to(device),
        position_ids=(real.cumsum(-1) - 1).clamp(min=0).to(device),  # prompts start at 0 wherever the padding ends
        use_cache=False,
    ).last_hidden_state
    predicting = (i.to(hidden.device) for i in real[:, left:].nonzero(as_tuple=True))
    return hidden[:, left - 1 : -1][*predicting]  # type: ignore[no-any-return]


def _packed(body: Callable[..., Any], rows: Sequence[Row], device: torch.device) -> Tensor:
    packed, ids, positions, columns = prefix_sharing.pack(rows)
    hidden = prefix_sharing.forward_packed(
        body, packed, torch.tensor(ids, device=device), torch.tensor(positions, device=device)
    )
    return hidden[torch.cat(columns).to(hidden.device)]
