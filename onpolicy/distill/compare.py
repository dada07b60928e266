"""One comparison of student and teacher: which view, on which support, by which divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Support = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(student [..., V], teacher [..., V])`` log-probabilities -> both ``[..., K]``, each summing to one."""
Divergence = Callable[[Tensor, Tensor], Tensor]
"""``(student [..., K], teacher [..., K])`` log-probabilities -> ``[...]``."""


@dataclass(frozen=True)
class Comparison:
    """Asked for by a loss term, computed once over the vocabulary, read from ``LossInputs.divergences``."""

    view: str
    support: Support
    divergence: Divergence

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.divergence(*self.support(student, teacher))
