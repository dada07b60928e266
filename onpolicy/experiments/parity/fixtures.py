"""The golden cases: inputs, and what published code computed from them (golden/README.md describes the format)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
ACCEPTED = Path(__file__).parent / "accepted.json"
VARIABLE = "ONPOLICY_GOLDEN"
"""Environment variable that names another folder of the same format."""
CREDIT_CONFIGS = {"group_std": "grpo", "group_mean": "dr_grpo", "leave_one_out": "rloo"}
"""Credit functions have no config of their own: the config that uses one stands for it."""
RENAMED = {"grpo_seed": "grpo_paper"}
"""Names under which the fixtures know a method -> ours."""


@dataclass(frozen=True)
class Case:
    """One golden case of a loss: B rows, T tokens, vocabulary V."""

    path: Path

    @cached_property
    def arrays(self) -> Mapping[str, Any]:
        with np.load(self.path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(str(self.arrays["meta"]))
        return found

    @property
    def method(self) -> str:
        return RENAMED.get(self.path.parent.name, self.path.parent.name)

    @property
    def name(self) -> str:
        return f"{self.method}/{self.path.stem}"

    @property
    def config(self) -> str:
        """Name of the shipped config that has to compute this."""
        return CREDIT_CONFIGS.get(self.method, self.method)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Scale of the case and the peer's settings, in plain words."""
        found: Mapping[str, Any] = self.meta.get("settings", {})
        return found

    @property
    def rows(self) -> int:
        return len(self.arrays["lengths"])

    def tensor(self, name: str, rows: Sequence[int] | None = None, width: int | None = None) -> Tensor:
        """An array in float64, some of its rows, so many of its tokens."""
        values = self.arrays[name].astype(np.float64)
        return torch.tensor((values if rows is None else values[list(rows)])[:, :width])


@dataclass(frozen=True)
class Accepted:
    """A committed difference to a golden case."""

    cause: str
    overrides: tuple[str, ...] = ()
    """With these laid over the config the case is equal: what the difference consists of."""


def accepted_differences() -> dict[str, Accepted]:
    """Name of a case -> why the config differs there."""
    found = json.loads(ACCEPTED.read_text(encoding="utf-8"))
    return {
        name: Accepted(given) if isinstance(given, str) else Accepted(given["cause"], tuple(given["with"]))
        for name, given in found.items()
    }


def golden_folder() -> Path:
    """The folder of cases: the package's own, or the one that ``ONPOLICY_GOLDEN`` names."""
    return Path(os.environ.get(VARIABLE) or GOLDEN)


def loss_cases(folder: Path | None = None) -> Iterator[Case]:
    """Every case of a loss, by method and name."""
    yield from (Case(path) for path in sorted(((folder or golden_folder()) / "losses").glob("*/*.npz")))


def text_cases(name: str, folder: Path | None = None) -> Mapping[str, Any]:
    """The cases about texts under this name, or nothing where the folder has none."""
    path = (folder or golden_folder()) / "texts" / f"{name}.json"
    if not path.exists():
        return {"cases": []}
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
