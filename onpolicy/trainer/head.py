"""Language-model heads: hidden states to logits, as each model computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from onpolicy.trainer.lora import adapter_of_head, merged_weight, own_parameters
from onpolicy.trainer.zero3 import gathered, gathered_exactly

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HeadLike(Protocol):
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[..., H]`` -> logits ``[..., V]``."""
        ...

    def mapped(self, function: Callable[[Head], Head]) -> HeadLike:
        """The same with each ``Head`` in it replaced by what ``function`` makes of it."""
        ...


@dataclass(frozen=True)
class Head:
    """A language-model head: ``z = scale (weight h + bias)``, then ``cap tanh(z / cap)``."""

    weight: Tensor | None = None
    """[V, H]; None if the hidden states are logits already."""
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None
    on_gradient: Callable[[Tensor, Tensor, Tensor], None] | None = None
    """Called in the backward pass with the indices of some of the N tokens, their logits and the gradient of the loss on them."""

    def logits(self, hidden: Tensor) -> Tensor:
        logits = hidden if self.weight is None else linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def mapped(self, function: Callable[[Head], Head]) -> Head:
        return function(self)

    def linear_gradient(self, logits: Tensor, gradient: Tensor) -> Tensor:
        """The gradient on ``weight h + bias``, from the one on the logits."""
        if self.cap is not None:
            gradient = gradient * (1.0 - (logits / self.cap) ** 2)
        return gradient if self.scale == 1.0 else gradient * self.scale


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states that predict N tokens, and the head that turns them into logits."""

    hidden: Tensor
    """[N, H]; logits [N, V] under a head without a weight."""
    head: HeadLike
    """The student's has to be a ``Head``."""
    weights: tuple[Tensor, ...] = ()
    """The head's parameters, of which a rank may hold only a shard."""

    @property
    def vocabulary(self) -> int:
        """V."""
        weight = self.head.weight if isinstance(self.head, Head) else None
        return self.hidden.shape[-1] if weight is None else len(weight)


def in_float32(logits: Tensor) -> Tensor:
    """Whatever the model runs in: bf16 log-probabilities are off by up to 1 %."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def head_of(model: PreTrainedModel) -> Head:
    """The model's own head, with its scaling (Cohere, Granite, FalconH1), soft cap (Gemma) and adapter.

    With an adapter its matrix is a new full tensor of the same size; without one it is the parameter, sharded if that is.
    """
    layer, adapter = model.get_output_embeddings(), adapter_of_head(model)
    weight = layer.weight
    if adapter is not None:
        with gathered(*head_weights(model)):
            weight = merged_weight(weight, adapter)
    config = model.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) * (getattr(config, "lm_head_multiplier", None) or 1.0)
    divisor = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(weight, getattr(layer, "bias", None), scale=scale / divisor, cap=cap)


def head_weights(model: PreTrainedModel) -> tuple[Tensor, ...]:
    """The parameters of ``head_of``."""
    layer, adapter = model.get_output_embeddings(), adapter_of_head(model)
    own = () if adapter is None else own_parameters(adapter)
    return tuple(p for p in (layer.weight, getattr(layer, "bias", None), *own) if p is not None)


@torch.no_grad()
def head_error(model: PreTrainedModel, input_ids: Tensor) -> tuple[float, float]:
    """Largest difference between ``head_of`` and the model's own logits on ``[1, S]``, and between those of two passes.

    More than rounding in the first means an unknown head, in the second a model that is random.
    """
    weights = head_weights(model)
    with gathered_exactly(
        *weights
    ):  # which a forward pass under ZeRO-3 might gather rounded, and ``gathered`` would not
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        with gathered(*weights):
            ours = head_of(model).logits(hidden)
        own, again = (model(input_ids=input_ids, use_cache=False).logits for _ in range(2))
    return float((ours - own).abs().max()), float((own - again).abs().max())
