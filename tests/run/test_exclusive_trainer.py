"""Whole runs in which trainer and generator take turns: a recorder in the place of vLLM, and no GPU.

1. whatever the trainer computes, the engine sleeps: steps, the sync that preflight tries, log-probs for privileged rollouts, token traces,
a resumed run's optimizer; 2. contexts that ask the model and evaluations wake it; 3. each step ends with a sync in order; 4. with
transformers the numbers of a run are what they are without turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.run import assemble as assembling
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display
from onpolicy.run.preflight import first_rollouts
from onpolicy.run.room import checkpoint_size
from onpolicy.run.run import Run
from onpolicy.run.sync_trial import SyncTrial
from onpolicy.train import train
from onpolicy.trainer.trainer import PolicyTrainer, forward_report, ids_read
from tests.rollout.fake_vllm import MEMORY, FakeLLM, put_in_place
from tests.runs import metrics, run_here, write_config

SYNCED = ["wake weights", "reload", "reset", "wake kv_cache"]
AWAKE_AGAIN = ["wake weights", "wake kv_cache"]
EVALUATION = {
    "every": 1,
    "samples_per_problem": 1,
    "pass_at": [1],
    "sets": {"easy": {"name": "gym", "task": "chain_sum", "size": 2}},
}
Start = Callable[..., tuple[Run, FakeLLM]]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Assembles a run whose engine can sleep, as on a GPU; whatever its trainer then computes is recorded, and has to find it asleep."""
    made = put_in_place(monkeypatch)
    monkeypatch.setattr("onpolicy.rollout.vllm_generator.sleeps", lambda sampling, *, beside_trainer: beside_trainer)
    for method in ("step", "apply", "load_state"):
        monkeypatch.setattr(PolicyTrainer, method, _watched(getattr(PolicyTrainer, method), method, made))
    runs: list[Run] = []

    def begin(*overrides: str, **changes: Any) -> tuple[Run, FakeLLM]:
        changes = {"generator": {"name": "vllm", "group_size": 3, "max_tokens": 4}, "steps": 2} | changes
        resolved = resolve(load(write_config(tmp_path, **changes), ["logging.tokens_every=0", *overrides]))
        runs.append(assemble(resolved, tmp_path / "run", Display(2)))
        return runs[-1], made[-1]

    yield begin
    for run in runs:
        run.close()


def _watched(method: Callable[..., Any], name: str, made: list[FakeLLM]) -> Callable[..., Any]:
    def watched(self: PolicyTrainer, *arguments: Any) -> Any:
        if arguments[0] in (forward_report, checkpoint_size, ids_read):  # they tell of the trainer, nothing is computed
            assert made, "ranks make their engines together, before the first call"
        else:
            assert made[-1].llm_engine.asleep == MEMORY, f"{name} beside an engine that is awake"
            made[-1].record(name)
        return method(self, *arguments)

    return watched


def test_a_step_is_sample_sleep_train_sync(begin: Start) -> None:
    run, llm = begin()
    train(run)
    assert llm.calls == 2 * ["generate", "sleep", "step", *SYNCED]


def test_contexts_and_evaluations_wake_it(begin: Start) -> None:
    """Both sample from an engine that is awake already; what wakes it is what asks after the trainer has worked."""
    run, llm = begin(contexts={"teacher": {"name": "regenerated", "samples": 2}}, eval=EVALUATION)
    run.generator.rest()
    train(run)
    step = ["generate", "sleep", "step", *SYNCED]
    assert llm.calls == ["sleep", *AWAKE_AGAIN, *step, *step, "generate"]


def test_log_probs_of_privileged_rollouts_are_read_asleep(begin: Start) -> None:
    """Annotating samples, and lets the trainer read what was sampled; a context that asks may follow."""
    run, llm = begin(
        rewards=[{"name": "tests.annotation.test_privileged:right_with_the_solution"}],
        privileged_rollouts={"name": "reference_solution", "samples": 2},
        objective=[{"name": "policy_gradient"}, {"name": "cross_entropy", "route": "privileged"}],
        contexts={},
        teacher="live",
        steps=1,
    )
    train(run)
    assert llm.calls == ["generate", "sleep", "apply", "step", *SYNCED]


def test_token_traces_are_read_asleep(begin: Start) -> None:
    run, llm = begin("logging.tokens_every=1")
    train(run)
    step = ["generate", "sleep", "step", *SYNCED, "sleep", "apply"]
    assert llm.calls == [*step, *AWAKE_AGAIN, *step]


def test_preflight_and_its_sync_trial_take_turns(begin: Start) -> None:
    run, llm = begin()
    examples = first_rollouts(run, resolve(run.config))
    SyncTrial(run, examples, tolerance=1e9).check()
    changed, sampled, back = ["sleep", "apply", "apply"], [*SYNCED, "generate"], ["sleep", "apply", "apply", "apply"]
    assert llm.calls == ["generate", *changed, *sampled, *back, *sampled, "sleep", "apply"]


def test_a_resumed_run_loads_its_state_asleep(begin: Start) -> None:
    run, _ = begin(steps=1)
    train(run)
    resumed, llm = begin(steps=2)
    assert resumed.resume()
    train(resumed)
    assert llm.calls == ["sleep", "load_state", *SYNCED, "generate", "sleep", "step", *SYNCED]


def test_the_same_numbers_without_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, checkpoint={"every": 0})
    assert run_here(config, f"run_dir={tmp_path / 'turns'}") == 0
    monkeypatch.setattr(assembling, "ExclusiveTrainer", lambda trainer, generator, timer: trainer)
    assert run_here(config, f"run_dir={tmp_path / 'none'}") == 0
    assert metrics(tmp_path / "turns") == metrics(tmp_path / "none")
