"""What runs under a trainer: it holds the weights, computes gradients and updates.

``TorchEngine`` is one process on one device, and the reference that ``DeepSpeedEngine`` is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from onpolicy.config.schema import TrainerSettings
from onpolicy.trainer.body_runner import BodyRunner, Item
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.moments import Moments
from onpolicy.trainer.optimizer import OptimizerState, adamw, load_state_by_name, moment_bytes, set_lr, state_by_name
from onpolicy.utils.device import torch_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Engine(Protocol):
    """The weights of student and teachers on one rank, and the optimizer."""

    device: torch.device
    collectives: SingleProcess
    """Sharding and reductions across the ranks."""
    precision: Literal["float32", "bfloat16"]
    """What forward passes compute in; set before the first model is placed."""
    alive: Callable[[], None]
    """Called before each forward and backward pass and for each parameter that is gathered or written: silence means a hang."""

    computed: dict[int, str]
    """By id of a model, the dtype in which its first pass ran, as seen."""

    def copies(self, parameter: Tensor) -> bool:
        """Whether a parameter is copied when its model is placed, so that two models may share it before."""
        ...

    def autocast(self) -> torch.autocast:
        """What the head runs in; a body opens its own."""
        ...

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with a sign of life before each."""
        ...

    @property
    def body(self) -> Callable[..., Any]:
        """Runs the student without its head, in ``precision``."""
        ...

    def prepare_frozen(self, model: PreTrainedModel) -> Callable[..., Any]:
        """Puts a model that has no gradient where it runs; returns what runs it without its head, as ``body``."""
        ...

    def prepare_student(self, student: PreTrainedModel) -> None:
        """Puts the student where it learns and makes its optimizer; called once, after all calls of ``prepare_frozen``."""
        ...

    def set_lr(self, lr: float) -> None: ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's part of the loss; parts and ranks are summed, never averaged."""
        ...

    def step(self) -> float:
        """Clips and applies the gradient, then clears it; returns its norm before clipping.

        A gradient whose norm is 0 or not finite changes nothing: momentum alone would move the weights.
        """
        ...

    def discard_gradient(self) -> bool:
        """Clears the gradient; False if the update cannot be repeated because other ranks wait in a collective."""
        ...

    def optimizer_state(self) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """By parameter the optimizer's full tensors, which any other engine can load; one parameter at a time, on every rank."""
        ...

    def moment_bytes(self) -> int:
        """Bytes of all that ``optimizer_state`` yields, or will after the first step."""
        ...

    def load_optimizer_state(self, state: OptimizerState) -> None: ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copies full tensors into the parameters that are trained."""
        ...


class TorchEngine(BodyRunner):
    """Plain torch in one process on one device; weights, and all arithmetic of the optimizer, in float32."""

    student: PreTrainedModel
    optimizer: torch.optim.Optimizer

    def __init__(self, settings: TrainerSettings, device: str | None = None, moments: Moments = "float32") -> None:
        """
        Args:
            settings: learning rate, AdamW's constants and the largest norm of a gradient
            device: torch device; None: the GPU if there is one, else the CPU
            moments: how AdamW's two moments are kept between updates
        """
        super().__init__(torch_device(device, "trainer.device"))
        self.settings, self.collectives, self.moments = settings, SingleProcess(), moments

    def copies(self, parameter: Tensor) -> bool:
        return parameter.device.type != self.device.type

    @property
    def body(self) -> Callable[..., Any]:
        return lambda **inputs: self.run(self.student, partial(self._forward, self.student), inputs)

    def prepare_frozen(self, model: PreTrainedModel) -> Callable[..., Any]:
        model.to(self.device)
        return lambda **inputs: self.run(model, partial(self._forward, model), inputs)

    def _forward(self, model: PreTrainedModel, **inputs: Any) -> Any:
        with self.autocast():
            return model.base_model(**inputs)

    def prepare_student(self, student: PreTrainedModel) -> None:
        self.student = student.to(self.device)
        self.optimizer = adamw(student, self.settings, self.device, self.moments)

    def set_lr(self, lr: float) -> None:
        set_lr(self.optimizer, lr)

    def backward(self, loss: Tensor) -> None:
        self.alive()
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> float:
        norm = float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip_norm))
        if math.isfinite(norm) and norm > 0.0:
            self.optimizer.step()
        self.discard_gradient()
        return norm

    def discard_gradient(self) -> bool:
        self.optimizer.zero_grad(set_to_none=True)
        return True

    def optimizer_state(self) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        return state_by_name(self.student, self.optimizer)

    def moment_bytes(self) -> int:
        return moment_bytes(self.student, self.optimizer)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        load_state_by_name(self.student, self.optimizer, state)

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.each(self.student.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(weights[name])
