"""A recorder in the place of vLLM, for what only a GPU has: it samples by chance, and fails where vLLM would hang or crash asleep."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

MEMORY = {"weights", "kv_cache"}


class FakeEngine:
    """``LLMEngine`` as far as ``SharedEngine`` uses it."""

    def __init__(self, record: Callable[[str], None], vocabulary: int, pause: float) -> None:
        self.record, self.vocabulary, self.pause = record, vocabulary, pause
        self.asleep: set[str] = set()
        self.requests: dict[str, tuple[list[int], Any, random.Random, list[int]]] = {}
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any, lora_request: Any = None) -> None:
        assert not self.asleep, f"a request for an engine whose {self.asleep} sleep waits for ever"
        self.requests[name] = (prompt["prompt_token_ids"], params, random.Random(getattr(params, "seed", 0)), [])
        self.record("generate")

    def step(self) -> list[Any]:
        """A token for each request."""
        assert not self.asleep, f"a step of an engine whose {self.asleep} sleep"
        time.sleep(self.pause)
        outputs = []
        for name, (prompt, params, chance, ids) in list(self.requests.items()):
            ids.append(chance.randrange(3, self.vocabulary))
            finished = len(ids) == params.max_tokens
            if finished:
                del self.requests[name]
            completion = SimpleNamespace(
                token_ids=list(ids), logprobs=[{i: SimpleNamespace(logprob=-1.0)} for i in ids], finish_reason="length"
            )
            scored = [None, *({i: SimpleNamespace(logprob=-2.0)} for i in prompt[1:])]
            outputs.append(
                SimpleNamespace(
                    request_id=name,
                    prompt_token_ids=prompt,
                    outputs=[completion],
                    finished=finished,
                    prompt_logprobs=scored,
                )
            )
        return outputs

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self.requests.pop(name, None)


class FakeLLM:
    """``vllm.LLM``, whose calls are recorded in ``calls``."""

    vocabulary, pause = 20, 0.0
    made: list[FakeLLM]
    breaks = False
    """Whether the next reload fails."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.calls = arguments, list[str]()
        self.llm_engine = FakeEngine(self.record, self.vocabulary, self.pause)
        self.made.append(self)

    def record(self, call: str) -> None:
        """Requests that come one after the other are one entry."""
        if self.calls[-1:] != ["generate"] or call != "generate":
            self.calls.append(call)

    def sleep(self, level: int = 1) -> None:
        assert self.arguments.get("enable_sleep_mode"), "made without sleep mode"
        assert not self.llm_engine.requests, "requests would be aborted"
        assert level == 1, "weights may be needed again before new ones come"
        self.llm_engine.asleep |= MEMORY
        self.record("sleep")

    def wake_up(self, tags: list[str] | None = None) -> None:
        for tag in tags or sorted(MEMORY):
            self.llm_engine.asleep.remove(tag)
            self.record(f"wake {tag}")

    def collective_rpc(self, method: str, kwargs: Any) -> None:
        assert method == "reload_weights" and "weights" not in self.llm_engine.asleep, (
            "weights are loaded into memory that is not there"
        )
        count = sum(1 for _ in kwargs["weights_iterator"])
        if FakeLLM.breaks:
            FakeLLM.breaks = False
            raise RuntimeError("no such tensor")
        assert count
        self.record("reload")

    def reset_prefix_cache(self, *, reset_running_requests: bool) -> None:
        assert reset_running_requests
        self.record("reset")


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    """Imports of vLLM get the recorder; returns the engines that are made."""
    fake: Any = ModuleType("vllm")
    fake.__spec__ = importlib.util.find_spec("vllm")  # where it is installed is still true
    fake.LLM, fake.SamplingParams = FakeLLM, lambda **settings: SimpleNamespace(**settings)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    FakeLLM.made, FakeLLM.breaks = [], False
    return FakeLLM.made
