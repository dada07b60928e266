"""Changes of the student's weights that every tensor shows and that go back to the last bit without a copy.

Every fourth column is halved, and doubled again: exact in binary floating point, and no normalisation hides it. More columns would
make a model of which one in bfloat16 is no longer a good copy. Where all numbers are 0 (a fresh adapter's B, many biases), every fourth
one of every other row gets a number, and 0 again: one number in all rows would move all logits alike, which a softmax does not see.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onpolicy.trainer.zero3 import gathered, gathered_for_write

if TYPE_CHECKING:
    from onpolicy.trainer.trainer import PolicyTrainer

FILLED = 2.0**-4
STRIDE = 4
"""Columns of which one is changed."""
NUMBERS_AT_ONCE = 2**24


@dataclass(frozen=True)
class ReversibleChange:
    """Names of the parameters that are changed."""

    halved: tuple[str, ...]
    filled: tuple[str, ...]

    def by_kind(self) -> Mapping[str, ReversibleChange]:
        """One change for the tensors of the same name in all layers, under that name with ``*`` for the layer's number; both
        matrices of an adapter are under the name of what they are added to."""
        found = {}
        for kind, names in groupby(sorted((*self.halved, *self.filled), key=_kind), key=_kind):
            own = set(names)
            found[kind] = ReversibleChange(
                tuple(n for n in self.halved if n in own), tuple(n for n in self.filled if n in own)
            )
        return found


@torch.no_grad()
def reversible_change(trainer: PolicyTrainer) -> ReversibleChange:
    """A change of every parameter that is trained, but for those whose numbers are too small to be halved."""
    halved, filled = [], []
    for name, parameter in trainer.engine.each(trainer.student.named_parameters()):
        if parameter.requires_grad:
            with gathered(parameter):
                if not parameter.any():
                    filled.append(name)
                elif _halves_exactly(parameter):
                    halved.append(name)
    return ReversibleChange(tuple(halved), tuple(filled))


def make_change(trainer: PolicyTrainer, change: ReversibleChange) -> None:
    """For ``Trainer.apply``, as is ``undo_change``."""
    _write(trainer, change, factor=0.5, value=FILLED)


def undo_change(trainer: PolicyTrainer, change: ReversibleChange) -> None:
    _write(trainer, change, factor=2.0, value=0.0)


@torch.no_grad()
def _write(trainer: PolicyTrainer, change: ReversibleChange, *, factor: float, value: float) -> None:
    parameters = dict(trainer.student.named_parameters())
    for name in trainer.engine.each((*change.halved, *change.filled)):
        with gathered_for_write(parameters[name]):
            whole = parameters[name]
            columns = whole[..., ::STRIDE] if whole.dim() else whole
            if name in change.halved:
                columns.mul_(factor)
            else:
                (columns[::2] if whole.dim() > 1 else columns).fill_(value)


def _halves_exactly(tensor: Tensor) -> bool:
    """False for numbers that are subnormal, or become so."""
    return all(torch.equal(part * 0.5 * 2.0, part) for part in tensor.detach().reshape(-1).split(NUMBERS_AT_ONCE))


def _kind(name: str) -> str:
    adapted = name.partition(".lora_")[0].replace(".base_layer", "")
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", adapted)
