"""A reward beside which torch is used."""

from __future__ import annotations

from typing import Any


def by_length(completion: str) -> float:
    return float(len(completion))


class Judge:
    """Has no use for torch itself."""


def model() -> Any:
    import torch

    return torch.nn.Linear(1, 1)
