"""Bytes of tensors that are alive while code runs, on real or on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside, counts the bytes of the storages that operations make until they are freed; what was there before counts nothing.

    What an operation allocates and frees within itself is not seen.
    """

    def __init__(self, before: Iterable[Tensor] = (), counted: Callable[[Tensor], bool] = lambda tensor: True) -> None:
        """
        Args:
            before: tensors that were there before, which operations may return
            counted: whether a tensor's storage counts
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.peak = 0, 0
        """Bytes now, and the most at any time."""
        self._counted = counted
        self._seen: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in before}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = self.run(func, args, kwargs or {})
        for tensor in (found,) if isinstance(found, Tensor) else tree_leaves(found):
            if isinstance(tensor, Tensor) and self._counted(tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return found

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the operation returns."""
        return func(*args, **kwargs)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self.now += size
            self._seen[key] = weakref.ref(storage, partial(self._freed, key, size))

    def _freed(self, key: int, size: int, _: Any) -> None:
        self.now -= size
        del self._seen[key]
