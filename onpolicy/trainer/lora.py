"""Low-rank adapters (peft): the base weights are the reference model, so a frozen teacher costs no memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, autocast, nn, no_grad, random

from onpolicy.protocols import AdapterShape
from onpolicy.trainer.zero3 import full_tensors, gathered, sharded
from onpolicy.utils.errors import ConfigError, suggest
from onpolicy.utils.ready import NotInstalled, extra, is_installed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"
PEFT_PREFIX = "base_model.model."
"""Before a layer's name in the files of peft."""


class NotOnLinearLayers(Exception):
    """Holds the name of an adapter that only a model can have in which it is merged."""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters; their output is scaled by alpha / rank."""

    rank: int = 0
    """0: no adapters, every weight is trained."""
    alpha: int = 32
    targets: Sequence[str] | None = None
    """Ends of the names of the layers that get one; None: every linear layer and expert but the head."""

    def __post_init__(self) -> None:
        """Raises NotInstalled, before any weights are loaded, where there are to be adapters and peft is missing."""
        if self.rank and not is_installed("peft"):
            raise NotInstalled(f"trainer.lora_rank needs the package peft: {extra('lora')}")


def add_adapter(model: PreTrainedModel, settings: LoraSettings, *, seed: int = 0) -> None:
    """Puts adapters into the model, which change nothing yet, and freezes everything else; does nothing at rank 0.

    Args:
        seed: of their first values (A; B is 0)

    Raises:
        ConfigError: no layer has such a name, or one that has cannot be adapted.
    """
    if not settings.rank:
        return
    from peft import LoraConfig

    targets = list(settings.targets or ())
    _refuse_unknown_targets(model, targets)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    others = [name for name, module in linear.items() if not _returns_a_product(module)]
    if named := [name for name in others if name.endswith(tuple(targets))]:
        raise ConfigError(
            f"trainer.lora_targets: {named[0]!r} is a {type(linear[named[0]]).__name__}, which takes no adapter"
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets or "all-linear",
        exclude_modules=others or None,
        lora_dropout=0.0,
    )
    try:
        with warnings.catch_warnings(), random.fork_rng(devices=[]):
            random.manual_seed(seed)
            warnings.simplefilter("ignore")  # about tied weights, which we merge under both names, and its own patterns
            model.add_adapter(config)
    except ValueError as error:
        ends = sorted({name.rpartition(".")[2] for name in linear.keys() - set(others)})
        raise ConfigError(
            f"trainer.lora_targets: {type(model).__name__} has no layers {', '.join(targets) or '(null)'} that take an adapter; "
            f"expected some of {', '.join(ends)} ({str(error).splitlines()[0]})"
        ) from error
    _refuse_untying(model)


@no_grad()
def _returns_a_product(module: nn.Linear) -> bool:
    """Whether an adapter's output can be added to the module's; a subclass may return more, as Phi-MoE's router does."""
    if type(module).forward is nn.Linear.forward:
        return True
    try:
        output = module(module.weight.new_zeros(1, module.in_features))
    except Exception:  # it takes other arguments
        return False
    return isinstance(output, Tensor) and output.shape == (1, module.out_features)


def _refuse_untying(model: PreTrainedModel) -> None:
    """An adapter on a head whose matrix is the embedding's would make them two, which no checkpoint of this model can hold."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight and _is_adapter(head):
        names = {module: name for name, module in model.named_modules()}
        raise ConfigError(
            f"trainer.lora_targets: the matrix of {names[head]!r} is that of {names[embedding]!r} too (tie_word_embeddings), so the head "
            f"cannot have an adapter of its own; expected {names[embedding].rpartition('.')[2]!r}, whose adapter is added to both"
        )


def _refuse_unknown_targets(model: nn.Module, targets: Sequence[str]) -> None:
    layers = [f".{name}" for name, _ in (*model.named_modules(), *model.named_parameters())]
    for target in targets:
        if not any(layer.endswith(f".{target}") for layer in layers):
            linear = sorted(
                {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
            )
            raise ConfigError(
                f"trainer.lora_targets: got {target!r}, but no layer of the model has a name that ends so; its linear layers: "
                f"{', '.join(linear)}.{suggest(target, linear)}"
            )


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


def merged_weights(model: nn.Module, *, only_adapted: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The weights with the adapters merged in, one full tensor at a time, under the names of a model without adapters.

    Adapters belong to parameters, not to names: a tied matrix has its adapter under both of its names, and a module of experts
    has one around each of its parameters.

    Args:
        model: with or without adapters
        only_adapted: leaves out the weights that have none
    """
    layers = {_weight_of(layer): layer for layer in _layers(model)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            continue
        plain, layer = name.replace(".base_layer", ""), layers.get(tensor)
        if layer is None:
            yield from () if only_adapted else full_tensors([(plain, tensor)])
        else:
            with no_grad(), gathered(tensor, *own_parameters(layer)):
                full = merged_weight(tensor, layer)
            yield plain, full


def adapter_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A and B of each adapter as full tensors under peft's names, B scaled by alpha / rank; for a model that has them on linear layers
    alone (``adapter_shape``)."""
    for name, layer in model.named_modules():
        if _is_adapter(layer):
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            with no_grad(), gathered(a, b):
                scaled = b * layer.scaling[ADAPTER]
                own = a.detach().clone() if sharded(a) else a.detach()
            yield f"{PEFT_PREFIX}{name}.lora_A.weight", own
            yield f"{PEFT_PREFIX}{name}.lora_B.weight", scaled


def adapter_shape(model: PreTrainedModel, settings: LoraSettings) -> AdapterShape:
    """The adapters that the settings put into a model, which gets them; it may be one without weights.

    Raises:
        NotOnLinearLayers: some are on another kind of parameter, or on the head.
        ConfigError: as ``add_adapter``.
    """
    add_adapter(model, settings)
    head = model.get_output_embeddings()
    found = {name: layer for name, layer in model.named_modules() if _is_adapter(layer)}
    for name, layer in found.items():
        if layer is head or hasattr(layer, "parameter_name") or not isinstance(layer.get_base_layer(), nn.Linear):
            raise NotOnLinearLayers(name)
    return AdapterShape(settings.rank, tuple(sorted({name.rpartition(".")[2] for name in found})))


def merged_weight(weight: Tensor, layer: Any) -> Tensor:
    """The full weight with a layer's adapter added to it in the weight's own precision; carries gradient to the adapter."""
    with autocast(weight.device.type, enabled=False):
        return weight + layer.get_delta_weight(ADAPTER).to(weight)


def adapter_of_head(model: PreTrainedModel) -> Any:
    """The layer whose adapter is added to the head's matrix: the head, or the embedding that it is tied to; None without one, or
    while adapters are off."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    found = next((m for m in (head, embedding) if _is_adapter(m) and m.weight is head.weight), None)
    return None if found is None or found.disable_adapters else found


def own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """A and B of one adapter, without those of an adapter that it wraps."""
    return [p for name, p in layer.named_parameters() if name.startswith("lora_")]


def _weight_of(layer: Any) -> Tensor:
    """The parameter that a layer's adapter is added to."""
    weight: Tensor = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
    return weight


def _is_adapter(module: nn.Module) -> bool:
    """Without importing peft: a model that never had adapters must not need it."""
    return hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")


def _layers(model: nn.Module) -> Iterator[Any]:
    return (m for m in model.modules() if _is_adapter(m))
