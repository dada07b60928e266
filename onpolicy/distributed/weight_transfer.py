"""Weights as flat bytes: what travels between processes through Ray's object store and is read there without a copy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LIMIT = 2**30
"""Bytes of a parcel, unless a single tensor is larger."""
ALIGNED = 64
"""Every tensor begins at a multiple of so many bytes."""


@dataclass(frozen=True)
class Item:
    """One tensor of a parcel."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class WeightBucket:
    """Some tensors, one behind the other."""

    items: tuple[Item, ...]
    data: npt.NDArray[np.uint8]


def pack(weights: Iterable[tuple[str, Tensor]], limit: int = LIMIT) -> Iterator[WeightBucket]:
    """Parcels of at most ``limit`` bytes; a larger tensor has one of its own.

    Every tensor is copied before the next is asked for, so that they may all stand in the same memory.
    """
    items: list[Item] = []
    data = np.empty(0, np.uint8)
    used = 0
    for name, tensor in weights:
        flat = _flat(tensor)
        if items and used + flat.size > limit:
            yield WeightBucket(tuple(items), data[:used])
            items, used = [], 0
        if not items:
            data = np.empty(max(limit, flat.size), np.uint8)  # pages that are not written take no memory
        data[used : used + flat.size] = flat
        items.append(Item(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), used))
        used = min(math.ceil((used + flat.size) / ALIGNED) * ALIGNED, data.size)
    if items:
        yield WeightBucket(tuple(items), data[:used])


def unpack(parcel: WeightBucket) -> Iterator[tuple[str, Tensor]]:
    """The tensors, on the parcel's own memory: to be read, not written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        data = torch.from_numpy(parcel.data)
    for item in parcel.items:
        dtype = getattr(torch, item.dtype)
        end = item.start + math.prod(item.shape) * dtype.itemsize
        yield item.name, data[item.start : end].view(dtype).view(item.shape)


@dataclass(frozen=True)
class WeightRefs:
    """Weights whose parcels lie in Ray's object store already; read there by whoever needs them."""

    refs: Sequence[Any]
    """One of Ray's references for each parcel; together they have every tensor once."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        import ray

        for ref in self.refs:
            yield from unpack(ray.get(ref))


def put_weights(weights: Iterable[tuple[str, Tensor]]) -> WeightRefs:
    """Puts weights into the object store, where they are not yet."""
    import ray

    return weights if isinstance(weights, WeightRefs) else WeightRefs([ray.put(parcel) for parcel in pack(weights)])


def _flat(tensor: Tensor) -> npt.NDArray[np.uint8]:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
