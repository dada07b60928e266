"""Weights as buckets of flat bytes, which other processes read from Ray's object store without a copy."""

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
"""Bytes of a bucket, unless a single tensor is larger."""
ALIGNED = 64
"""Every tensor begins at a multiple of this many bytes."""


@dataclass(frozen=True)
class BucketEntry:
    """Where one tensor lies in a bucket."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class WeightBucket:
    """Some tensors, one after the other."""

    entries: tuple[BucketEntry, ...]
    data: npt.NDArray[np.uint8]


def pack_weights(
    weights: Iterable[tuple[str, Tensor]], limit: int = LIMIT, *, dtype: str = "float32"
) -> Iterator[WeightBucket]:
    """Buckets of at most ``limit`` bytes; a larger tensor has one of its own.

    Every tensor is copied before the next is requested, so that all of them may use the same memory.

    Args:
        weights: full tensors by name
        limit: bytes
        dtype: what the engines compute in, to which float32 tensors are rounded where they are: engines would round them as they take them
    """
    entries: list[BucketEntry] = []
    data = np.empty(0, np.uint8)
    used = 0
    for name, tensor in weights:
        tensor = tensor.detach()
        tensor = tensor.to(getattr(torch, dtype)) if tensor.dtype == torch.float32 else tensor
        flat = _flat(tensor)
        if entries and used + flat.size > limit:
            yield WeightBucket(tuple(entries), data[:used])
            entries, used = [], 0
        if not entries:
            data = np.empty(max(limit, flat.size), np.uint8)  # pages that are not written take no memory
        data[used : used + flat.size] = flat
        entries.append(BucketEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), used))
        used = min(math.ceil((used + flat.size) / ALIGNED) * ALIGNED, data.size)
    if entries:
        yield WeightBucket(tuple(entries), data[:used])


def unpack_weights(bucket: WeightBucket) -> Iterator[tuple[str, Tensor]]:
    """The tensors, as read-only views of the bucket's memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        data = torch.from_numpy(bucket.data)
    for entry in bucket.entries:
        dtype = getattr(torch, entry.dtype)
        end = entry.start + math.prod(entry.shape) * dtype.itemsize
        yield entry.name, data[entry.start : end].view(dtype).view(entry.shape)


@dataclass(frozen=True)
class WeightRefs:
    """Weights whose buckets are in Ray's object store already."""

    refs: Sequence[Any]
    """One of Ray's references per bucket; together they hold every tensor once."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        import ray

        for ref in self.refs:
            yield from unpack_weights(ray.get(ref))


def put_weights(weights: Iterable[tuple[str, Tensor]], dtype: str = "float32") -> WeightRefs:
    """Puts weights into the object store, in what the engines compute in, unless they are there already."""
    import ray

    return (
        weights
        if isinstance(weights, WeightRefs)
        else WeightRefs([ray.put(bucket) for bucket in pack_weights(weights, dtype=dtype)])
    )


def _flat(tensor: Tensor) -> npt.NDArray[np.uint8]:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
