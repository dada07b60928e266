"""Bounded asynchrony: the next steps' rollouts are sampled while this step is trained.

1. batches are trained in order, each problem once an epoch, no token older than the bound, whatever takes how long; 2. so
many batches are on their way at once, and none beyond the last step; dynamic sampling draws one after another; 3. with a
bound of 0 the run is the synchronous one to the last bit; 4. a run says how old its rollouts are; what is older than
allowed, or newer than the weights, is refused; 5. stopped with batches on their way and resumed, every problem is trained
once; 6. what goes wrong on a thread is raised in its step, and closing does not hang; 7. after cancelling, everything begins
again; 8. evaluation and contexts sample meanwhile, with one version. With vLLM: tests/run/test_run_vllm.py.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onpolicy.annotation.annotate import StaleRollouts, _refuse_stale
from onpolicy.annotation.metrics import staleness_metrics
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.data.cursor import PromptCursor
from onpolicy.rollout.prefetch import RolloutPrefetcher
from onpolicy.rollout.sampler import RolloutSampler
from onpolicy.run.assemble import assemble
from onpolicy.run.checkpoint import read_state
from onpolicy.run.display import Display
from onpolicy.train import train
from onpolicy.types import Prompt, Rollout, RolloutGroup, RolloutReward, Sampling, ScoredGroup
from onpolicy.utils.timer import PhaseTimer
from tests.runs import metrics, run_here, start, wait_for_a_step, write_config
from tests.tiny import example

STALE = {"name": "transformers", "group_size": 3, "max_tokens": 8, "max_staleness": 2}
PROMPTS = [Prompt(id=str(i), messages=()) for i in range(12)]


class Slow:
    """A generator whose rollouts say which weights made each token; every token takes a while, decided by chance."""

    def __init__(self, seed: int, longest: float = 0.004) -> None:
        self.policy_version, self.chance, self.longest = 0, random.Random(seed), longest
        self.sampling, self.on_progress = Sampling(), lambda done, total, tokens: None
        self.running, self.most, self.asked = 0, 0, list[tuple[int, tuple[str, ...]]]()
        self.fails: int | None = None
        self.lock = threading.Lock()

    def reset_version(self) -> None:
        self.policy_version = -1

    def generate(
        self, prompts: Sequence[Prompt], *, seed: int, sampling: Any = None, on_group: Any = None
    ) -> list[RolloutGroup]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.asked.append((seed, tuple(p.id for p in prompts)))
        if seed == self.fails:
            raise RuntimeError(f"no rollouts for step {seed}")
        versions = []
        for _ in range(4):
            versions.append(self.policy_version)
            time.sleep(self.chance.uniform(0, self.longest))
        with self.lock:
            self.running -= 1
        return [RolloutGroup(prompt=p, rollouts=(rollout(versions), rollout(versions))) for p in prompts]

    def update_weights(self, weights: Any, *, version: int) -> None:
        self.policy_version = version

    def close(self) -> None:
        pass


def rollout(versions: Sequence[int]) -> Rollout:
    """One token from each of these versions."""
    made = example([5], [6] * len(versions)).rollout
    return replace(made, policy_version=min(versions), token_versions=tuple(versions))


def score(groups: Sequence[RolloutGroup], begun: Any = None) -> list[ScoredGroup]:
    """The even problems are of use to dynamic sampling, the others are all right."""
    return [
        ScoredGroup(group, (RolloutReward(1.0, 0.0, {}),) * 2, (1.0, float(int(group.prompt.id) % 2)))
        for group in groups
    ]


def pipeline(generator: Slow, *, staleness: int, steps: int, batches: int = 0) -> RolloutPrefetcher:
    cursor = PromptCursor(PROMPTS, batch_size=2, seed=0)
    clock = PhaseTimer()
    rollouts = RolloutSampler(generator, cursor, score, clock, lambda step: step, batches=batches)
    return RolloutPrefetcher(rollouts, clock, staleness=staleness, steps=steps)


def problems_of(groups: Sequence[ScoredGroup]) -> list[str]:
    return [judged.group.prompt.id for judged in groups]


def run_through(sample: RolloutPrefetcher, steps: range, delay: float = 0.004) -> list[list[str]]:
    """The loop, with training that takes a while; the problems of each step."""
    generator: Any = sample.rollouts.generator
    seen = []
    for step in steps:
        groups, _ = sample.sample(step)
        for judged in groups:
            _refuse_stale(judged.group, step - 1, sample.staleness)
        seen.append(problems_of(groups))
        time.sleep(random.Random(step).uniform(0, delay))
        generator.update_weights((), version=step)
    return seen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("batches", [0, 3])
def test_in_order_once_an_epoch_and_never_too_old(seed: int, batches: int) -> None:
    staleness = random.Random(seed).randint(0, 4)
    reference = run_through(pipeline(Slow(seed, 0.0), staleness=0, steps=18, batches=batches), range(1, 19), 0.0)
    generator = Slow(seed)
    sample = pipeline(generator, staleness=staleness, steps=18, batches=batches)
    seen = run_through(sample, range(1, 19))
    sample.close()
    assert seen == reference
    if not batches:
        for epoch in range(3):
            given = [problem for step in seen[6 * epoch : 6 * epoch + 6] for problem in step]
            assert sorted(given) == sorted(p.id for p in PROMPTS)
        assert {seed for seed, _ in generator.asked} == set(range(1, 19)), "no batch beyond the last step"
    assert generator.most <= (1 if batches else staleness + 1)


def test_so_many_batches_are_on_their_way() -> None:
    generator = Slow(0)
    sample = pipeline(generator, staleness=2, steps=5)
    for step, completion_prefix_ids in (
        (1, {1, 2, 3}),
        (2, {1, 2, 3, 4}),
        (3, {1, 2, 3, 4, 5}),
        (4, {1, 2, 3, 4, 5}),
        (5, {1, 2, 3, 4, 5}),
    ):
        found = sample.sample(step)[1]
        assert sample.position == 2 * step, "a resumed run begins behind the batch that is being trained"
        assert {"pipeline/generate", "pipeline/reward"} <= set(found)
        while not {seed for seed, _ in generator.asked} >= completion_prefix_ids:
            time.sleep(0.001)
        assert {seed for seed, _ in generator.asked} == completion_prefix_ids
    sample.close()


def test_with_a_bound_of_0_nothing_happens_elsewhere() -> None:
    threads = set()

    def watched(groups: Sequence[RolloutGroup], begun: Any) -> list[ScoredGroup]:
        threads.add(threading.current_thread())
        return score(groups)

    sample = pipeline(Slow(0, 0.0), staleness=0, steps=9)
    sample.rollouts = replace(sample.rollouts, score=watched)
    run_through(sample, range(1, 4))
    assert threads == {threading.main_thread()}
    assert sample.position == 6 and {"time/generate", "time/reward"} == set(sample.timer.pop())


def test_what_goes_wrong_is_raised_in_its_step_and_closing_does_not_hang() -> None:
    generator = Slow(0)
    generator.fails = 3
    sample = pipeline(generator, staleness=2, steps=9)
    assert run_through(sample, range(1, 3))
    with pytest.raises(RuntimeError, match="no rollouts for step 3"):
        sample.sample(3)
    assert sample.position == 4, "step 3 is still to be trained"
    sample.close()
    sample.close()


@pytest.mark.parametrize("batches", [0, 3])
def test_after_cancelling_everything_begins_again(batches: int) -> None:
    reference = run_through(pipeline(Slow(0, 0.0), staleness=0, steps=9, batches=batches), range(1, 10), 0.0)
    generator = Slow(0)
    sample = pipeline(generator, staleness=3, steps=9, batches=batches)
    begin = sample.rollouts.prompts.state()
    assert run_through(sample, range(1, 4)) == reference[:3]
    sample.cancel()
    assert generator.running == 0
    assert run_through(sample, range(4, 6)) == reference[3:5], "no problem is lost"
    sample.cancel()
    generator.policy_version = 0
    sample.rollouts.prompts.load_state(begin)
    assert run_through(sample, range(1, 10)) == reference, "back to the start"
    generator.fails = 4
    sample.cancel()
    generator.policy_version = 0
    sample.rollouts.prompts.load_state(begin)
    with pytest.raises(RuntimeError):
        run_through(sample, range(1, 10))
    generator.fails = None
    sample.cancel()
    assert run_through(sample, range(4, 10)) == reference[3:], "after a fault"
    sample.close()


def test_rollouts_older_than_allowed_or_newer_are_refused() -> None:
    whole = RolloutGroup(prompt=PROMPTS[0], rollouts=(replace(example([5], [6]).rollout, policy_version=3),))
    for version, staleness in ((3, 0), (3, 1), (4, 1)):
        _refuse_stale(whole, version, staleness)
    for version, staleness in ((4, 0), (5, 1), (2, 1)):
        with pytest.raises(StaleRollouts, match=f"version 3, training is at {version}.*staleness is {staleness}"):
            _refuse_stale(whole, version, staleness)
    mixed = RolloutGroup(prompt=PROMPTS[0], rollouts=(rollout([3, 3, 5]),))
    for version, staleness in ((5, 2), (6, 3)):
        _refuse_stale(mixed, version, staleness)
    for version, staleness in ((5, 1), (4, 2), (6, 2)):
        with pytest.raises(StaleRollouts, match="version 3 to 5"):
            _refuse_stale(mixed, version, staleness)


def test_how_old_rollouts_are_by_hand() -> None:
    whole = replace(example([5], [6, 7]).rollout, policy_version=4)
    group = RolloutGroup(prompt=PROMPTS[0], rollouts=(rollout([3, 3, 5, 5]), whole))
    found = staleness_metrics(score([group]), 5)
    #                            tokens: 2, 2, 0, 0, 1, 1
    assert found == {"rollout/staleness/mean": 1.0, "rollout/staleness/max": 2.0, "rollout/resumed": 0.5}


def test_a_negative_bound_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, generator=STALE | {"max_staleness": -1})
    assert run_here(config) == 2
    assert "generator.max_staleness: got -1, expected 0 or more" in capsys.readouterr().err


class DatasetCompletions:
    """A step's rollouts on their way into training."""

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.ids = sampler, list[Any]()

    def sample(self, step: int) -> Any:
        groups, found = self.sampler.sample(step)
        self.ids.append([(j.group.prompt.id, [r.completion_ids for r in j.group.rollouts]) for j in groups])
        return groups, found

    def state(self) -> Any:
        return self.sampler.state()

    def close(self) -> None:
        self.sampler.close()


class Direct:
    """The synchronous loop: rollouts are asked for when they are expected."""

    def __init__(self, rollouts: RolloutSampler) -> None:
        self.rollouts = rollouts

    def sample(self, step: int) -> Any:
        return self.rollouts.sample(step)

    def state(self) -> Any:
        return self.rollouts.prompts.state()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("dynamic_sampling", [0, 3])
def test_a_bound_of_0_is_the_synchronous_run_to_the_last_bit(tmp_path: Path, dynamic_sampling: int) -> None:
    config, ids = write_config(tmp_path), []
    for name in ("pipeline", "direct"):
        settings = load(config, ["steps=4", f"data.dynamic_sampling={dynamic_sampling}"])
        run = assemble(resolve(settings), tmp_path / name, Display(4))
        if name == "direct":
            run.sampler = Direct(run.sampler.rollouts)  # type: ignore[assignment]
        run.sampler = recorded = DatasetCompletions(run.sampler)  # type: ignore[assignment]
        train(run)
        run.close()
        ids.append(recorded.ids)
    assert ids[0] == ids[1] and len(ids[0]) == 4
    assert metrics(tmp_path / "pipeline") == metrics(tmp_path / "direct")
    assert not any(name.startswith("rollout/staleness") for name in metrics(tmp_path / "direct")[0])


def test_a_run_with_rollouts_that_are_older(tmp_path: Path) -> None:
    config = write_config(tmp_path, generator=STALE, steps=6)
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 0
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["rollout/staleness/max"] == 0.0 and rows[0]["rollout/logprob_gap"] < 1e-4
    assert all(0 <= row["rollout/staleness/mean"] <= row["rollout/staleness/max"] <= 2 for row in rows)
    assert max(row["rollout/staleness/max"] for row in rows) > 0
    assert all(row["rollout/resumed"] == 0.0 for row in rows), (
        "transformers ends a batch under the weights that began it"
    )
    for row in rows:
        assert (row["rollout/staleness/max"] == 0) == (row["rollout/logprob_gap"] < 1e-4), (
            "the policy has moved on since"
        )
    raw = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all({"pipeline/generate", "rollout/tokens_per_second"} <= set(row) for row in raw if row["step"] > 0)


def trained_problems(run: Path) -> list[str]:
    """Of each group of each step, from the samples that a run leaves behind."""
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return [row["prompt_id"] for row in rows]


@pytest.mark.process
def test_stopped_and_resumed_every_problem_is_trained_once(tmp_path: Path) -> None:
    """Problems whose rollouts were on their way when it stopped are sampled again."""
    config = write_config(tmp_path, generator=STALE, checkpoint={"every": 0}, steps=400)
    run, every = tmp_path / "run", "logging.samples=6"  # all rollouts of a step
    process = start(config, f"run_dir={run}", every)
    wait_for_a_step(process, run)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    done = read_state(next((run / "checkpoints").glob("step-*")))
    assert done["prompts"]["position"] == 2 * done["step"]
    steps = done["step"] + 6 - done["step"] % 6  # whole epochs of six steps
    assert run_here(config, f"run_dir={run}", every, f"steps={steps}") == 0
    problems = trained_problems(run)
    assert len(problems) == 6 * steps
    for epoch in range(steps // 6):
        counts = [problems[36 * epoch : 36 * epoch + 36].count(p) for p in set(problems)]
        assert counts == [3] * 12, "each of the twelve problems once, three rollouts each"


def test_evaluation_and_contexts_sample_meanwhile(tmp_path: Path) -> None:
    """Both are asked from the main thread, between two updates: they see one version."""
    config = write_config(
        tmp_path,
        generator=STALE,
        contexts={"teacher": {"name": "regenerated", "samples": 2}},
        eval={
            "every": 2,
            "samples_per_problem": 2,
            "pass_at": [1, 2],
            "sets": {"easy": {"name": "gym", "task": "chain_sum", "size": 3}},
        },
        steps=4,
    )
    run = assemble(resolve(load(config, [])), tmp_path / "run", Display(4))
    seen, generate, main = [], run.generator.generate, threading.main_thread()

    def watched(*args: Any, **kwargs: Any) -> Any:
        groups = generate(*args, **kwargs)
        if threading.current_thread() is main:
            seen.append(({r.policy_version for g in groups for r in g.rollouts}, run.generator.policy_version))
        return groups

    run.generator.generate = watched  # type: ignore[method-assign]
    train(run)
    run.close()
    assert seen and all(versions == {current} for versions, current in seen)
    assert {current for _, current in seen} == {0, 1, 2, 3, 4}
    assert [row["step"] for row in metrics(tmp_path / "run") if "eval/easy/avg@2" in row] == [0, 2, 4]


def test_batches_are_judged_one_at_a_time() -> None:
    inside, most = [], []

    def slowly(groups: Sequence[RolloutGroup], begun: Any) -> list[ScoredGroup]:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.005)
        inside.pop()
        return score(groups)

    sample = pipeline(Slow(0, 0.0), staleness=3, steps=8)
    sample.rollouts = replace(sample.rollouts, score=slowly)
    run_through(sample, range(1, 9))
    sample.close()
    assert max(most) == 1


def test_closing_with_batches_on_their_way() -> None:
    sample = pipeline(Slow(0, 0.05), staleness=3, steps=8)
    sample.sample(1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(sample.close).result()
