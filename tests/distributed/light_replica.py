"""A replica that loads no torch, so that many of them start in seconds."""

from __future__ import annotations

from typing import Any

from onpolicy.distributed.actor import Actor
from onpolicy.distributed.weight_paths import WeightPath


class Holder(Actor):
    """Holds a number in the place of weights, and notes which way each has come."""

    held, came = 0, ""

    def weight_path(self) -> WeightPath:
        return WeightPath("nccl")

    def update_weights(self, weights: Any, version: int) -> None:
        self.held, self.came = version, self.came + f"store {version} "

    def receive(self, version: int) -> None:
        self.held, self.came = version, self.came + f"nccl {version} "

    def confirm_weights(self, version: int) -> None:
        assert self.held == version

    def answer(self) -> str:
        return self.came
