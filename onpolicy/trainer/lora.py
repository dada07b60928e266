"""Low-rank adapters (peft): the base weights are the reference model, so a frozen teacher costs no memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn, no_grad

from onpolicy.trainer.zero3 import full_tensors, gathered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters; their output is scaled by alpha / rank."""

    rank: int = 0
    """0: no adapters, every weight is trained."""
    alpha: int = 32
    targets: Sequence[str] | None = None
    """Ends of the names of the layers that get one; None: every linear layer but the head."""


def add_adapter(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Puts adapters into the model, initialised to zero, and freezes everything else; does nothing at rank 0.

    Raises:
        ImportError: peft is not installed.
    """
    if not settings.rank:
        return
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("trainer.lora_rank needs the package peft: pip install 'onpolicy[lora]'") from error
    targets: Any = list(settings.targets) if settings.targets else "all-linear"
    model.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, lora_dropout=0.0))


def adapted(model: nn.Module) -> bool:
    return any(True for _ in _layers(model))


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did before it got adapters."""
    layers = list(_layers(model))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights with the adapters merged in, one full tensor at a time, under the names of a model without adapters."""
    layers = set(_layers(model))
    deltas = {f"{name}.weight": layer for name, layer in model.named_modules() if layer in layers}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        layer = deltas.get(plain)
        if layer is None:
            yield from full_tensors([(plain, tensor)])
        else:
            with no_grad(), gathered(tensor, *(p for n, p in layer.named_parameters() if ".lora_" in f".{n}")):
                full = tensor + layer.get_delta_weight(ADAPTER).to(tensor)
            yield plain, full


def adapter_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in model.named_parameters() if ".lora_" in name)


def _layers(model: nn.Module) -> Iterator[Any]:
    """Without importing peft: a model that never had adapters must not need it."""
    return (m for m in model.modules() if hasattr(m, "get_delta_weight") and hasattr(m, "base_layer"))
