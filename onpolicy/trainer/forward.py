"""One forward pass: from a micro-batch to the hidden states that predict its completion tokens.

The body of the model runs on whole sequences; its head runs later and only where a token was sampled
(``onpolicy.trainer.chunked_head``). The shift of the alignment rule is applied here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onpolicy.trainer import prefix_sharing
from onpolicy.trainer.chunked_head import Head, HiddenStates
from onpolicy.trainer.micro_batches import Row
from onpolicy.trainer.zero3 import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layout = Literal["padded", "packed"]


def completion_states(
    model: PreTrainedModel, rows: Sequence[Row], *, layout: Layout = "padded", body: Callable[..., Any] | None = None
) -> HiddenStates:
    """The states that predict every token of the rows' completions, N together, row after row.

    Args:
        model: a causal language model of transformers; one for ``packed`` has been through ``prefix_sharing.prepare``
        rows: prompts and completions
        layout: ``padded`` runs the rows as they are; ``packed`` runs them as one row without padding, equal prompts once
        body: what runs the model without its head; None: the model itself
    """
    hidden = (_padded if layout == "padded" else _packed)(body or model.base_model, rows, model.device)
    return HiddenStates(hidden=hidden, head=head_of(model), weights=head_weights(model))


def _padded(body: Callable[..., Any], rows: Sequence[Row], device: torch.device) -> Tensor:
    """``[pad.. prompt | completion ..pad]``: prompts end where completions begin."""
    left, right = (max(map(len, column)) for column in zip(*rows, strict=True))
    ids = torch.zeros(len(rows), left + right, dtype=torch.long)
    real = torch.zeros_like(ids)
    for i, (prompt, completion) in enumerate(rows):
        place = slice(left - len(prompt), left + len(completion))
        ids[i, place], real[i, place] = torch.tensor([*prompt, *completion]), 1
    hidden = body(
        input_ids=ids.to(device),
        attention_mask=real.to(device),
        position_ids=(real.cumsum(-1) - 1).clamp(min=0).to(device),  # prompts start at 0 wherever the padding ends
        use_cache=False,
    ).last_hidden_state
    return hidden[:, left - 1 : -1][real[:, left:].bool().to(hidden.device)]  # type: ignore[no-any-return]


def _packed(body: Callable[..., Any], rows: Sequence[Row], device: torch.device) -> Tensor:
    planted, ids, positions, places = prefix_sharing.pack(rows)
    hidden = prefix_sharing.run(body, planted, torch.tensor(ids, device=device), torch.tensor(positions, device=device))
    return hidden[torch.cat(places).to(hidden.device)]


def head_of(model: PreTrainedModel) -> Head:
    """Hidden states -> logits as the model itself computes them, with its scaling (Cohere, Granite) and soft cap (Gemma)."""
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, getattr(layer, "bias", None), scale=scale / divisor, cap=cap)


def head_weights(model: PreTrainedModel) -> tuple[Tensor, ...]:
    """The parameters that ``head_of`` reads."""
    layer = model.get_output_embeddings()
    return tuple(p for p in (layer.weight, getattr(layer, "bias", None)) if p is not None)


@torch.no_grad()
def head_error(model: PreTrainedModel, input_ids: Tensor) -> float:
    """Largest difference between our logits and the model's own on ``[1, S]``; anything but rounding means an unknown head."""
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    with whole(*head_weights(model)):
        ours = head_of(model)(hidden)
    return float((ours - model(input_ids=input_ids, use_cache=False).logits).abs().max())
