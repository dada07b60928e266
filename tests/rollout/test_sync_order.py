"""New weights in an engine whose threads have CUDA streams of their own, without a GPU: a recorder in place of the device and the engine.

1. the device is waited for before the copies and after them, and only then may another step begin; 2. nothing is under way while weights
are replaced that could go on afterwards.
"""

from __future__ import annotations

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
        names = [name for name, _ in kwargs["weights_iterator"]]
        self.calls.append(f"{method} {' '.join(names)}")

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
    assert calls == ["made a", "made b", "synchronize", "reload_weights a b", "synchronize", "reset_prefix_cache"]


def test_no_batch_is_under_way_while_weights_are_replaced() -> None:
    assert _one_batch_at_a_time(Sampling(max_staleness=2)) == {"async_scheduling": False}
    assert _one_batch_at_a_time(Sampling()) == {}, "nothing runs then: vLLM's own default, which is faster"
