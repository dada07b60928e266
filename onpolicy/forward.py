"""One forward pass: from a micro-batch to the hidden states that predict its completion tokens.

The body of the model runs on whole sequences; its head runs later and only where a token was sampled
(``onpolicy.distill.vocabulary``). The shift of the alignment rule is applied here and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from onpolicy import forest
from onpolicy.distill.vocabulary import Head, States

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layout = Literal["padded", "packed"]


def completion_states(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, mask: Tensor, *, layout: Layout = "padded"
) -> States:
    """The states that predict the N tokens marked in ``mask``, in row-major order.

    Args:
        model: a causal language model of transformers; one for ``packed`` has been through ``forest.prepare``
        input_ids: [B, S] prompts padded left, completions padded right
        attention_mask: [B, S] 0 on padding
        mask: [B, T] bool, the sampled tokens wanted; T counts from the right end of S
        layout: ``padded`` runs the rows as they are; ``packed`` runs them as one row without padding, equal prompts once
    """
    hidden = (_padded if layout == "padded" else _packed)(model.base_model, input_ids, attention_mask, mask)
    return States(hidden=hidden, head=head_of(model))


def _padded(body: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, mask: Tensor) -> Tensor:
    hidden = body(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),  # prompts start at 0 wherever the padding ends
        use_cache=False,
    ).last_hidden_state
    width = mask.shape[1]
    return hidden[:, -width - 1 : -1][mask]  # type: ignore[no-any-return]


def _packed(body: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, mask: Tensor) -> Tensor:
    start, device = input_ids.shape[1] - mask.shape[1], input_ids.device
    real = attention_mask.bool().cpu()
    rows = input_ids.cpu()
    prompts = [row[keep].tolist() for row, keep in zip(rows[:, :start], real[:, :start], strict=True)]
    completions = [row[keep].tolist() for row, keep in zip(rows[:, start:], real[:, start:], strict=True)]
    trees, ids, positions, places = forest.plant(prompts, completions)
    hidden = forest.run(body, trees, torch.tensor(ids, device=device), torch.tensor(positions, device=device))
    wanted = torch.cat([place[keep[: len(place)]] for place, keep in zip(places, mask.cpu(), strict=True)])
    return hidden[wanted.to(device)]


def head_of(model: PreTrainedModel) -> Head:
    """Hidden states -> logits as the model itself computes them, with its scaling (Cohere, Granite) and soft cap (Gemma)."""
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, getattr(layer, "bias", None), scale=scale / divisor, cap=cap)


@torch.no_grad()
def head_error(model: PreTrainedModel, input_ids: Tensor) -> float:
    """Largest difference between our logits and the model's own on ``[1, S]``; anything but rounding means an unknown head."""
    ours = head_of(model)(model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state)
    return float((ours - model(input_ids=input_ids, use_cache=False).logits).abs().max())
