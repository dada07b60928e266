"""Access to weights that DeepSpeed ZeRO-3 has sharded; on full weights all of this does nothing.

DeepSpeed marks a sharded parameter with a ``ds_id`` and gathers it while its module runs. Code that uses a weight outside of
its module, as the chunked head does, gathers it here. All ranks have to do so at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor


def sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def gathered(*tensors: Tensor | None) -> AbstractContextManager[Any]:
    """Inside, these weights are full on every rank; what is written to them is lost."""
    # one that is gathered already belongs to an outer caller, who needs it for longer
    parts = {id(t): t for t in tensors if t is not None and sharded(t) and t.ds_status.name == "NOT_AVAILABLE"}  # type: ignore[attr-defined]
    if not parts:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(list(parts.values()))
    return context


def gathered_for_write(*tensors: Tensor) -> AbstractContextManager[Any]:
    """Inside, these weights are full; what rank 0 writes to them is kept on every rank."""
    parts = [t for t in tensors if sharded(t)]
    if not parts:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parts, modifier_rank=0)
    return context


def full_tensors(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Full tensors, one at a time: an unsharded one as it is, a sharded one as a copy on the CPU."""
    for name, tensor in named:
        if sharded(tensor):
            with gathered(tensor):
                full = tensor.detach().to("cpu", copy=True)
            yield name, full
        else:
            yield name, tensor.detach()


def local_shard(tensor: Tensor) -> Tensor:
    """The flat shard that this rank holds; an unsharded weight itself."""
    part: Tensor = tensor.ds_tensor if sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part
