"""Sums over tokens that stay on the device until someone reads them: a number that the host asks for makes it wait for the device."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

AT_ONCE = 64
"""Values that are summed in one go, so that few kernels are started for them."""


def exact_dtype(device: torch.device) -> torch.dtype:
    """In which dtype sums are kept: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def read_counts(counts: Sequence[Tensor | int]) -> list[int]:
    """Whole numbers, some of which are on the device, which is asked once for all of them."""
    there = iter(torch.stack(tensors).tolist() if (tensors := [n for n in counts if isinstance(n, Tensor)]) else ())
    return [next(there) if isinstance(n, Tensor) else n for n in counts]


class DeviceSums:
    """By name, the sum of masked values and how many there were, over any number of micro-batches."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Tensor, Tensor]] = []
        self._on_device: dict[tuple[str, ...], Tensor] = {}
        """Names -> [2, names] sums and numbers."""
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Adds the values at the positions of the mask.

        Args:
            name: of the quantity
            values: [B, T]
            mask: [B, T] bool
        """
        self._waiting.append((name, values.detach(), mask))
        if len(self._waiting) >= AT_ONCE:
            self._sum_up()

    def add_read(self, name: str, value: float, number: int) -> None:
        """Adds a sum that another process has read, and the number of its values."""
        self._sums[name] += value
        self._counts[name] += number

    def absorb(self, other: DeviceSums) -> None:
        """Adds the sums of another; nothing is read."""
        other._sum_up()
        for names, table in other._on_device.items():
            self._keep(names, table)
        for name, value in other._sums.items():
            self._sums[name] += value
        self._counts.update(other._counts)

    def read(self) -> tuple[dict[str, float], dict[str, int]]:
        """Sums and numbers by name. The host asks the device once, and not again before something is added."""
        self._sum_up()
        if self._on_device:
            found = torch.cat([table.flatten() for table in self._on_device.values()]).tolist()
            for names in self._on_device:
                size = len(names)
                for name, value, number in zip(names, found[:size], found[size : 2 * size], strict=True):
                    self._sums[name] += value
                    self._counts[name] += int(number)
                del found[: 2 * size]
            self._on_device.clear()
        return dict(self._sums), dict(self._counts)

    def clear(self) -> None:
        self._waiting.clear()
        self._on_device.clear()
        self._sums.clear()
        self._counts.clear()

    def _sum_up(self) -> None:
        """Adds what waits, all values of one shape at once."""
        shapes: defaultdict[tuple[torch.Size, torch.device], list[tuple[str, Tensor, Tensor]]] = defaultdict(list)
        for name, values, mask in self._waiting:
            shapes[mask.shape, mask.device].append((name, values, mask))
        self._waiting.clear()
        for same in shapes.values():
            self._keep(tuple(name for name, _, _ in same), _masked_sums([v for _, v, _ in same], [m for *_, m in same]))

    def _keep(self, names: tuple[str, ...], table: Tensor) -> None:
        self._on_device[names] = self._on_device[names] + table if names in self._on_device else table


def _masked_sums(values: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """[2, names] sums of the values where the masks are true, and how often they are."""
    dtype, chosen = exact_dtype(masks[0].device), torch.stack(list(masks)).flatten(1)
    # where, not multiplication and not an index: 0 * nan is nan, and the host would wait for the number of chosen positions
    summed = torch.where(chosen, torch.stack([v.to(dtype) for v in values]).flatten(1), 0.0).sum(-1)
    return torch.stack([summed, chosen.sum(-1).to(dtype)])
