"""Generators called by several threads at once, with new weights in the middle.

1. threads get what they would get alone; 2. with vLLM a rollout goes on under new weights: its tokens say who sampled
them, and the log-probs of each part are those of the weights that sampled it; 3. a rollout of transformers has one version,
also when new weights come between two batches; 4. new weights are not kept out by threads that sample; 5. turns go to
whoever has waited longest, and an interrupt while waiting blocks nobody; 6. closing ends what is being sampled; 7. a rollout's
versions fit its tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from onpolicy.rollout.fair_lock import Closed, FairLock
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling
from tests.rollout.test_generators import PROMPTS, arguments, by_the_model, fresh, restart
from tests.tiny import example

LONG = Sampling(group_size=6, max_tokens=180)


@pytest.fixture(scope="module")
def hf(model_dir: Path) -> HFGenerator:
    return HFGenerator(**arguments(model_dir), batch_size=6)


@pytest.fixture(params=["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def generator(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def endless(generator: Any) -> list[Prompt]:
    """Problems whose rollouts all become as long as they may."""
    return [replace(p, banned_token_ids=tuple(generator.renderer.eos_ids)) for p in PROMPTS]


def changed(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def rollouts_of(groups: list[RolloutGroup]) -> list[Rollout]:
    return [r for g in groups for r in g.rollouts]


def versions_of(rollout: Rollout) -> tuple[int, ...]:
    return rollout.token_versions or (rollout.policy_version,) * len(rollout.completion_ids)


def test_threads_get_what_they_would_get_alone(generator: Any, model_dir: Path, pool: ThreadPoolExecutor) -> None:
    restart(generator, model_dir)
    alone = [rollouts_of(generator.generate(PROMPTS, seed=seed)) for seed in range(4)]
    together = list(pool.map(lambda seed: rollouts_of(generator.generate(PROMPTS, seed=seed)), range(4)))
    for one, other in zip(alone, together, strict=True):
        assert [r.completion_ids for r in one] == [r.completion_ids for r in other]
        assert all(r.token_versions == () for r in other)
        for a, b in zip(one, other, strict=True):
            assert a.rollout_logprobs == pytest.approx(b.rollout_logprobs, abs=1e-5)


def wait_for_tokens(engine: Any, tokens: int, groups: Future[Any]) -> None:
    """Returns when some request has so many tokens."""
    while max((len(r.versions) for r in list(engine._running.values())), default=0) < tokens:
        assert not groups.done(), "too late"
        time.sleep(0.002)


@pytest.mark.vllm
def test_with_vllm_a_rollout_goes_on_under_new_weights(vllm: Any, model_dir: Path, pool: ThreadPoolExecutor) -> None:
    restart(vllm, model_dir)
    first = vllm.policy_version
    models = {first: fresh(model_dir)}
    groups = pool.submit(vllm.generate, endless(vllm), seed=3, sampling=LONG)
    for version in (first + 1, first + 2):
        wait_for_tokens(vllm._engine, 40 * (version - first), groups)
        models[version] = changed(fresh(model_dir), version)
        vllm.update_weights(models[version].state_dict().items(), version=version)
    expected = {version: [by_the_model(m, r) for r in rollouts_of(groups.result())] for version, m in models.items()}
    for number, rollout in enumerate(rollouts_of(groups.result())):
        assert len(rollout.completion_ids) == 180 and rollout.finish_reason == "length"
        assert rollout.policy_version == first
        assert list(rollout.token_versions) == sorted(rollout.token_versions)
        assert set(rollout.token_versions) == {first, first + 1, first + 2}
        own = torch.stack([expected[v][number][t] for t, v in enumerate(rollout.token_versions)])
        assert (own - torch.tensor(rollout.rollout_logprobs)).abs().max() < 1e-4
        for version in models:
            others = torch.tensor(rollout.token_versions) != version
            gap = (expected[version][number] - torch.tensor(rollout.rollout_logprobs)).abs()[others]
            assert gap.max() > 1e-2, "the weights must differ for this to mean anything"
    after = vllm.generate(PROMPTS, seed=0)
    assert all(versions_of(r) == (first + 2,) * len(r.completion_ids) for r in rollouts_of(after))
    newest = torch.cat([by_the_model(models[first + 2], r) for r in rollouts_of(after)])
    assert (newest - torch.tensor([x for r in rollouts_of(after) for x in r.rollout_logprobs])).abs().max() < 1e-4


@pytest.mark.vllm
def test_more_rollouts_than_the_engine_holds_go_on_under_new_weights(
    vllm: Any, model_dir: Path, pool: ThreadPoolExecutor
) -> None:
    """Some run, some wait, and all that ran are read again at once: more tokens than one step takes."""
    restart(vllm, model_dir)
    first = vllm.policy_version
    many = replace(LONG, group_size=80)  # 320 rollouts, 256 places
    groups = pool.submit(vllm.generate, endless(vllm), seed=3, sampling=many)
    wait_for_tokens(vllm._engine, 60, groups)
    new = changed(fresh(model_dir), 5)
    vllm.update_weights(new.state_dict().items(), version=first + 1)
    rollouts = rollouts_of(groups.result())
    assert {frozenset(versions_of(r)) for r in rollouts} == {frozenset({first, first + 1}), frozenset({first + 1})}
    for rollout in rollouts[::29]:
        old = by_the_model(fresh(model_dir), rollout)
        own = torch.where(torch.tensor(versions_of(rollout)) == first, old, by_the_model(new, rollout))
        assert (own - torch.tensor(rollout.rollout_logprobs)).abs().max() < 1e-4


def test_a_rollout_of_transformers_has_one_version(hf: HFGenerator, model_dir: Path, pool: ThreadPoolExecutor) -> None:
    restart(hf, model_dir)
    first, completion_prefix_ids = hf.policy_version, threading.Event()
    hf.on_progress = lambda done, total, tokens: completion_prefix_ids.set()
    groups = pool.submit(hf.generate, endless(hf), seed=3, sampling=LONG)
    assert completion_prefix_ids.wait()
    new = changed(fresh(model_dir), 1)
    hf.update_weights(new.state_dict().items(), version=first + 1)
    assert not groups.done(), "the weights came in between"
    models = {first: fresh(model_dir), first + 1: new}
    assert {r.policy_version for r in rollouts_of(groups.result())} == set(models)
    for rollout in rollouts_of(groups.result()):
        assert rollout.token_versions == ()
        gap = by_the_model(models[rollout.policy_version], rollout) - torch.tensor(rollout.rollout_logprobs)
        assert gap.abs().max() < 1e-4


def test_new_weights_are_not_kept_out(generator: Any, model_dir: Path, pool: ThreadPoolExecutor) -> None:
    """Three threads sample for ever; weights get in all the same, each time after a few steps or batches."""
    restart(generator, model_dir)
    stop, rounds = threading.Event(), []

    def sample(seed: int) -> None:
        while not stop.is_set():
            rounds.append(generator.generate(PROMPTS, seed=seed))

    threads = [pool.submit(sample, seed) for seed in range(3)]
    weights = list(fresh(model_dir).state_dict().items())
    try:
        for _ in range(20):
            before = len(rounds)
            generator.update_weights(weights, version=generator.policy_version + 1)
            assert len(rounds) - before <= 4, "one turn for each thread that was waiting"
            time.sleep(0.01)
    finally:
        stop.set()
    for thread in threads:
        thread.result()
    assert len({v for groups in rounds for r in rollouts_of(groups) for v in versions_of(r)}) > 5


def test_turns_go_to_whoever_has_waited_longest(pool: ThreadPoolExecutor) -> None:
    turns, order = FairLock(), list[int]()

    def take(number: int) -> None:
        with turns.hold():
            order.append(number)

    with turns.hold():
        waiting = []
        for number in range(4):
            waiting.append(pool.submit(take, number))
            while len(turns._queue) < number + 2:
                time.sleep(0.001)
    for thread in waiting:
        thread.result()
    assert order == [0, 1, 2, 3]


def test_whoever_comes_back_at_once_does_not_keep_the_others_out(pool: ThreadPoolExecutor) -> None:
    for _ in range(30):
        turns, stop, taken = FairLock(), threading.Event(), list[int]()
        with turns.hold():
            threads = [pool.submit(come_back, turns, stop, number, taken) for number in range(3)]
            while len(turns._queue) < 4:
                time.sleep(0.001)
            last = pool.submit(take_last, turns, stop, taken)
            while len(turns._queue) < 5:
                time.sleep(0.001)
        for thread in (*threads, last):
            thread.result()
        assert sorted(taken[:3]) == [0, 1, 2] and taken[3] == -1, "one turn for each of the three before it"


def come_back(turns: FairLock, stop: threading.Event, number: int, taken: list[int]) -> None:
    """Takes one turn after the other."""
    while not stop.is_set():
        with turns.hold():
            taken.append(number)


def take_last(turns: FairLock, stop: threading.Event, taken: list[int]) -> None:
    with turns.hold():
        taken.append(-1)
    stop.set()


def test_an_interrupt_while_waiting_blocks_nobody(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = FairLock()

    class Interrupted:
        """A lock whose waiting ends with Ctrl-C."""

        def __init__(self) -> None:
            self.taken = False

        def acquire(self) -> None:
            if self.taken:
                raise KeyboardInterrupt
            self.taken = True

        def release(self) -> None:
            pass

    with turns.hold():
        monkeypatch.setattr("onpolicy.rollout.fair_lock.threading.Lock", Interrupted)
        with pytest.raises(KeyboardInterrupt), turns.hold():
            pass
        monkeypatch.undo()
    with turns.hold():
        pass


def test_closing_ends_what_is_being_sampled(model_dir: Path, pool: ThreadPoolExecutor) -> None:
    generator = HFGenerator(**arguments(model_dir))
    groups = pool.submit(generator.generate, endless(generator), seed=0, sampling=replace(LONG, group_size=16))
    while not generator._turns._queue:
        time.sleep(0.001)
    generator.close()
    with pytest.raises(Closed):  # and not the rollouts, however soon they would have been whole
        groups.result()
    with pytest.raises(Closed):
        generator.generate(PROMPTS, seed=0)


@pytest.mark.vllm
def test_a_request_that_fails_leaves_nothing_behind(vllm: Any, model_dir: Path) -> None:
    restart(vllm, model_dir)
    expected = rollouts_of(vllm.generate(PROMPTS, seed=1))

    def fail(done: int, total: int, tokens: int) -> None:
        raise RuntimeError("no more")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "on_progress", fail)
        with pytest.raises(RuntimeError, match="no more"):
            vllm.generate(PROMPTS, seed=1)
    assert not vllm._engine._running
    assert rollouts_of(vllm.generate(PROMPTS, seed=1)) == expected


def test_a_rollouts_versions_fit_its_tokens() -> None:
    rollout = example([5], [6, 7, 8]).rollout
    assert replace(rollout, policy_version=2, token_versions=(2, 2, 3)).policy_version == 2
    with pytest.raises(ValueError, match="3 completion tokens but 2 token_versions"):
        replace(rollout, policy_version=2, token_versions=(2, 3))
    with pytest.raises(ValueError, match="policy_version is 3, but its oldest token's is 2"):
        replace(rollout, policy_version=3, token_versions=(2, 3, 3))
