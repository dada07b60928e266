"""How forward passes run: what a config says, and what the device decides where it says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from onpolicy.trainer.forward import Layout

Precision = Literal["auto", "float32", "bfloat16"]
LEFT_TO_DEVICE = ("precision", "gradient_checkpointing")
"""Options of trainers whose default the device decides."""


@dataclass(frozen=True)
class ForwardSettings:
    """What the option of the same name says, or, once it is ``on`` a device, what it came to there."""

    precision: Precision = "auto"
    layout: Layout | None = None
    """None: packed if every model supports prefix sharing, else padded."""
    gradient_checkpointing: bool | None = None

    def on(self, device: torch.device, *, can_recompute: bool = True) -> ForwardSettings:
        """With precision and recomputation chosen for this device where they are left to it.

        A GPU has matrix units and flash attention for bfloat16 and neither for float32, and what a pass leaves for the backward pass is
        larger than everything else on it; a CPU has memory enough and gains nothing from bfloat16.

        Args:
            device: where the models run
            can_recompute: whether the student has layers that can be recomputed; asked for nevertheless, they are refused later
        """
        cuda = device.type == "cuda"
        precision = ("bfloat16" if cuda else "float32") if self.precision == "auto" else self.precision
        recomputed = self.gradient_checkpointing
        return replace(
            self,
            precision=precision,
            gradient_checkpointing=cuda and can_recompute if recomputed is None else recomputed,
        )


def settings_on(
    device: Literal["cuda", "cpu"], options: Mapping[str, Any], *, can_recompute: bool = True
) -> ForwardSettings:
    """What a trainer's options come to on such a device, whether or not there is one here."""
    asked = {name: options[name] for name in (*LEFT_TO_DEVICE, "layout") if name in options}
    return ForwardSettings(**asked).on(torch.device(device), can_recompute=can_recompute)


def left_to_device(options: Mapping[str, Any]) -> dict[str, str]:
    """By option of a trainer that leaves the choice to the device, what is chosen where, and here.

    Args:
        options: the trainer's, defaults included
    """
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for name in LEFT_TO_DEVICE:
        if name in options and options[name] in ("auto", None):
            gpu, cpu, own = (
                str(getattr(ForwardSettings().on(device), name)).lower()
                for device in (torch.device("cuda"), torch.device("cpu"), here)
            )
            found[name] = f"auto: {gpu} on a CUDA GPU, {cpu} on the CPU (here {own})"
    return found


@dataclass(frozen=True)
class ForwardReport:
    """How the forward passes of a trainer run."""

    devices: tuple[str, ...]
    """Of each rank."""
    settings: ForwardSettings
    """With nothing left open."""
    default: ForwardSettings
    """What the same device would choose."""
    frozen_weights: tuple[Precision, ...] = ()
    """Under bfloat16, what the matrices of each model that never changes are kept in."""

    @property
    def precision(self) -> Literal["float32", "bfloat16"]:
        assert self.settings.precision != "auto"
        return self.settings.precision

    @property
    def where(self) -> str:
        """The device, or which ranks are on which."""
        if len(self.devices) == 1:
            return self.devices[0]
        return (
            f"{len(self.devices)} ranks ({', '.join(f'{rank}: {device}' for rank, device in enumerate(self.devices))})"
        )

    def __str__(self) -> str:
        recomputed = "recomputed" if self.settings.gradient_checkpointing else "not recomputed"
        kept = f", frozen models {' and '.join(sorted({*self.frozen_weights}))}" if self.frozen_weights else ""
        return f"{self.settings.precision} on {self.where}, weights and updates float32{kept}, layers {recomputed}"
