"""Weights of which a rank holds a part (DeepSpeed ZeRO-3); for weights that are whole nothing here does anything.

DeepSpeed marks a parameter that it has sharded with a ``ds_id`` and gathers it where its module runs. Whoever touches weights
otherwise, as the vocabulary's chunks do with the head, gathers them here. All ranks have to do so at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor


def sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def whole(*tensors: Tensor | None) -> AbstractContextManager[Any]:
    """Inside, these weights are whole on every rank; what is written to them is lost."""
    # one that is whole already belongs to somebody further out, who needs it for longer
    parts = {id(t): t for t in tensors if t is not None and sharded(t) and t.ds_status.name == "NOT_AVAILABLE"}  # type: ignore[attr-defined]
    if not parts:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(list(parts.values()))
    return gathered


def written(*tensors: Tensor) -> AbstractContextManager[Any]:
    """Inside, these weights are whole, and what rank 0 writes to them is every rank's afterwards."""
    parts = [t for t in tensors if sharded(t)]
    if not parts:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parts, modifier_rank=0)
    return gathered


def wholes(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """One tensor at a time: a whole one as it is, a sharded one as a copy on the CPU."""
    for name, tensor in named:
        if sharded(tensor):
            with whole(tensor):
                full = tensor.detach().to("cpu", copy=True)
            yield name, full
        else:
            yield name, tensor.detach()


def shard(tensor: Tensor) -> Tensor:
    """The part that this rank holds, flat; of a whole weight the weight itself."""
    part: Tensor = tensor.ds_tensor if sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part
