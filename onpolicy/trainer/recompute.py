"""Gradient checkpointing without training mode: layers run again in the backward pass exactly as they ran forward.

transformers recomputes a layer in training mode only, which also turns dropout, router jitter and layerdrop on. The student that
learns has to be the one that sampled, so here the model stays in evaluation mode, in which nothing of it is random.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from onpolicy.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def recompute_layers(model: PreTrainedModel) -> None:
    """From now on a pass with a gradient keeps the inputs of the model's layers only.

    Raises:
        ConfigError: the model does not say which of its modules are layers.
    """
    layers = recomputable_layers(model)
    if not layers:
        raise ConfigError(
            f"trainer.gradient_checkpointing: {type(model).__name__} has no layers that can be recomputed; expected false"
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def recomputable_layers(model: PreTrainedModel) -> list[Module]:
    """The modules that transformers takes for layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
