"""An engine that gives its memory back while the trainer works, without a GPU: a recorder in the place of vLLM, a patched flag in the place
of CUDA.

1. it sleeps, and wakes in order: weights, new weights, prefix cache, keys and values; 2. nothing is sampled or scored asleep, whoever asks,
from however many threads; 3. torch's cache is empty before it wakes; 4. it goes on after a reload that failed; 5. it sleeps only where it
takes turns with a trainer on the same GPU, and memory in expandable segments is refused there.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from onpolicy.data.rendering import Renderer
from onpolicy.rollout.vllm_generator import VLLMGenerator
from onpolicy.rollout.vllm_sleep import ALLOCATOR_SETTINGS
from onpolicy.types import Prompt, Sampling
from onpolicy.utils.errors import ConfigError
from tests.rollout.fake_vllm import FakeLLM, put_in_place
from tests.tiny import byte_tokenizer

SAMPLING = Sampling(group_size=2, max_tokens=3)
PROMPTS = [Prompt(id=str(i), messages=({"role": "user", "content": "x" * i},)) for i in range(3)]
AWAKE_AGAIN = ["wake weights", "wake kv_cache"]
SYNCED = ["wake weights", "reload", "reset", "wake kv_cache"]
Make = Callable[..., tuple[VLLMGenerator, FakeLLM]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a generator as on a GPU, and the recorder of its engine."""
    made = put_in_place(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)

    def make(sampling: Sampling = SAMPLING, **options: Any) -> tuple[VLLMGenerator, FakeLLM]:
        arguments: dict[str, Any] = {"model": "m", "max_model_len": 256, "beside_trainer": True} | options
        generator = VLLMGenerator(renderer=Renderer(byte_tokenizer()), sampling=sampling, **arguments)
        return generator, made[-1]

    return make


def sync(generator: VLLMGenerator) -> None:
    generator.update_weights([("w", torch.zeros(1))], version=generator.policy_version + 1)


def test_it_wakes_in_order_around_new_weights(make: Make) -> None:
    generator, llm = make()
    assert llm.arguments["enable_sleep_mode"] is True
    for _ in range(2):
        generator.generate(PROMPTS, seed=0)
        generator.rest()
        generator.rest()
        sync(generator)
    assert llm.calls == 2 * ["generate", "sleep", *SYNCED]
    sync(generator)
    assert llm.calls[-2:] == ["reload", "reset"], "nothing to wake"


def test_whoever_asks_wakes_it(make: Make) -> None:
    """A context or an evaluation; the weights come back as they were."""
    generator, llm = make()
    generator.rest()
    generator.generate(PROMPTS, seed=0)
    generator.rest()
    assert generator.logprobs([5, 6, 7]) == [-2.0, -2.0]
    generator.rest()
    assert llm.calls == 2 * ["sleep", *AWAKE_AGAIN, "generate"] + ["sleep"]


def test_what_torch_keeps_is_given_back_before_it_wakes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, llm = make()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: llm.record("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: llm.record("empty"))
    generator.rest()
    sync(generator)
    before, loaded = ["sleep", "empty", "wake weights"], ["synchronize", "synchronize", "reload", "reset"]
    assert llm.calls == [*before, *loaded, "empty", "wake kv_cache"]


def test_merged_weights_are_there_only_while_they_are_copied(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, llm = make()
    alive: list[int] = []

    class Merged(torch.Tensor):
        def __init__(self, *_: Any) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    wake_up = llm.wake_up

    def checked(tags: list[str]) -> None:
        assert not alive, "made once their place is there, and gone before keys and values come back"
        wake_up(tags)

    monkeypatch.setattr(llm, "wake_up", checked)
    generator.rest()
    generator.update_weights(((name, Merged(1)) for name in "ab"), version=1)
    assert llm.calls == ["sleep", *SYNCED]


def test_a_reload_that_fails_leaves_an_engine_that_can_be_used(make: Make) -> None:
    generator, llm = make()
    generator.rest()
    FakeLLM.breaks = True
    with pytest.raises(RuntimeError, match="no such tensor"):
        sync(generator)
    generator.generate(PROMPTS, seed=0)
    generator.rest()
    assert llm.calls == ["sleep", *AWAKE_AGAIN, "generate", "sleep"]
    FakeLLM.breaks = True
    with pytest.raises(RuntimeError, match="no such tensor"):
        sync(generator)
    generator.rest()
    sync(generator)
    assert llm.calls[5:] == ["wake weights", "sleep", *SYNCED], "half awake, it sleeps again"


def test_it_stays_awake_while_another_thread_samples(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, llm = make()
    resting = threading.Event()
    step = llm.llm_engine.step

    def slow_step() -> list[Any]:
        resting.set()
        return step()

    monkeypatch.setattr(llm.llm_engine, "step", slow_step)
    monkeypatch.setattr(llm.llm_engine, "pause", 0.01)
    with ThreadPoolExecutor(1) as pool:
        sampled = pool.submit(generator.generate, PROMPTS, seed=0, sampling=replace(SAMPLING, max_tokens=20))
        resting.wait()
        generator.rest()
        assert len(sampled.result()) == len(PROMPTS) and llm.calls == ["generate"]
    generator.rest()
    assert llm.calls == ["generate", "sleep"]


def test_never_asleep_with_many_threads(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder fails if a request or a step comes asleep, if weights are loaded asleep, or if it wakes twice."""
    monkeypatch.setattr(FakeLLM, "pause", 0.0002)
    generator, llm = make()
    done = threading.Event()

    def rests() -> int:
        chance, count = random.Random(0), 0
        while not done.is_set():
            generator.rest()
            if chance.random() < 0.3:
                sync(generator)
            count += 1
        return count

    with ThreadPoolExecutor(5) as pool:
        resting = pool.submit(rests)
        sampled = [pool.submit(generator.generate, PROMPTS[: 1 + n % 3], seed=n) for n in range(60)]
        try:
            groups = [future.result() for future in sampled]
        finally:
            done.set()
        assert resting.result() > 10
    assert [len(g) for g in groups] == [1 + n % 3 for n in range(60)]
    assert all(len(r.completion_ids) == SAMPLING.max_tokens for g in groups for one in g for r in one.rollouts)
    assert llm.calls.count("sleep") > 3


@pytest.mark.parametrize(
    ("sampling", "options"),
    [(SAMPLING, {"beside_trainer": False}), (replace(SAMPLING, max_staleness=1), {})],
    ids=["a GPU of its own", "it samples while the trainer works"],
)
def test_it_does_not_sleep_without_turns(
    make: Make, monkeypatch: pytest.MonkeyPatch, sampling: Sampling, options: dict[str, Any]
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    generator, llm = make(sampling, **options)
    generator.rest()
    generator.generate(PROMPTS, seed=0)
    sync(generator)
    assert llm.calls == ["generate", "reload", "reset"] and "enable_sleep_mode" not in llm.arguments


def test_it_does_not_sleep_on_a_cpu(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    generator, llm = make()
    generator.rest()
    assert llm.calls == [] and "enable_sleep_mode" not in llm.arguments


@pytest.mark.parametrize("name", ALLOCATOR_SETTINGS)
def test_expandable_segments_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:512, expandable_segments:true")
    with pytest.raises(ConfigError, match=rf"{name}: got 'expandable_segments:true', expected it without"):
        make()
    monkeypatch.setenv(name, "max_split_size_mb:512,expandable_segments:False")
    make()
