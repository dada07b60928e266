"""New weights in an engine whose threads have CUDA streams of their own, without a GPU: a recorder in place of the device and the engine.

1. the device is waited for before each copy and after the last one, and only then may another step begin; of the tensors at
most two are alive; 2. nothing is under way while weights are replaced that could go on afterwards.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from onpolicy.rollout.vllm_engine import SharedEngine
from onpolicy.rollout.vllm_generator import _one_batch_at_a_time
from onpolicy.types import Sampling


class RecordingLLM:
    """vLLM's interface as far as a sync uses it."""

    def __init__(self, calls: list[str]) -> None:
        self.calls, self.llm_engine = calls, None

    def collective_rpc(self, method: str, kwargs: Any) -> None:
        assert method == "reload_weights"
        for name, _ in kwargs["weights_iterator"]:
            self.calls.append(f"copied {name}")

    def reset_prefix_cache(self, *, reset_running_requests: bool) -> None:
        assert reset_running_requests
        self.calls.append("reset_prefix_cache")


def test_the_device_is_waited_for_around_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: calls.append("synchronize"))

    def weights() -> Any:
        for name in ("a", "b"):
            calls.append(f"made {name}")
            yield name, torch.zeros(1)

    SharedEngine(RecordingLLM(calls)).update(weights(), version=1)
    each = [
        ["made a", "synchronize", "copied a"],
        ["made b", "synchronize", "copied b"],
        ["synchronize", "reset_prefix_cache"],
    ]
    assert calls == [call for part in each for call in part]


def test_of_the_tensors_at_most_two_are_alive() -> None:
    """The one that vLLM copies, and the one before it, which goes when the next is there."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def weights() -> Any:
        nonlocal most
        for number in range(6):
            made = torch.full((2,), float(number))
            alive.add(made)
            most = max(most, len(alive))
            yield str(number), made
            del made

    SharedEngine(RecordingLLM([])).update(weights(), version=1)
    assert most == 2 and not alive


def test_no_batch_is_under_way_while_weights_are_replaced() -> None:
    assert _one_batch_at_a_time(Sampling(max_staleness=2)) == {"async_scheduling": False}
    assert _one_batch_at_a_time(Sampling()) == {}, "nothing runs then: vLLM's own default, which is faster"
