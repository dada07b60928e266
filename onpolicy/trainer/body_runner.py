"""Runs the bodies of models for an engine: with a sign of life, inside of autocast, and with an eye on the dtype that results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from onpolicy.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Item = TypeVar("Item")


class PrecisionError(UserError, RuntimeError):
    """A forward pass ran in another dtype than the one that was asked for."""


class BodyRunner:
    """What every engine does around a forward pass."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What the passes compute in; set before the first model is placed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.alive: Callable[[], None] = lambda: None
        """Called before each forward and backward pass and for each parameter that is gathered or written: silence means a hang."""
        self.computed: dict[int, str] = {}
        """By id of a model, the dtype in which its first pass ran."""

    def autocast(self) -> torch.autocast:
        """What bodies and heads run in.

        Nothing is cached: a pass uses a weight once, and the cache would hold bfloat16 copies of all of them until it ends.
        """
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with a sign of life before each."""
        for item in items:
            self.alive()
            yield item

    def run(self, model: PreTrainedModel, body: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """``body(**inputs)``, which runs the model without its head.

        Raises:
            PrecisionError: the model's first pass computed in another dtype than ``precision``.
        """
        self.alive()
        if id(model) in self.computed:
            return body(**inputs)
        with _linear_dtypes(model) as seen:
            output = body(**inputs)
        ((dtype, _),) = seen.most_common(1) or [(getattr(torch, self.precision), 0)]  # a model without linear layers
        self.computed[id(model)] = str(dtype).removeprefix("torch.")
        if self.computed[id(model)] != self.precision:
            raise PrecisionError(
                f"trainer.precision: the layers of {type(model).__name__} ran in {self.computed[id(model)]} on {self.device}, expected "
                f"{self.precision}; something around them has switched autocast"
            )
        return output


@contextmanager
def _linear_dtypes(model: PreTrainedModel) -> Iterator[Counter[torch.dtype]]:
    """Inside, counts the dtypes of what linear layers return."""
    seen: Counter[torch.dtype] = Counter()

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen[output.dtype] += 1

    layers = [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
