"""The student's weights on their way to a generator, which takes all of them or the adapters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

Named = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class StudentWeights:
    """``onpolicy.protocols.Weights``: whoever takes them decides what is made, and on several ranks gathered."""

    whole: Callable[[], Named]
    """All weights, adapters merged in."""
    adapter: Callable[[], Named]
    """Adapters alone."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.whole())
