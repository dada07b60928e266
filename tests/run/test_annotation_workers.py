"""Whole runs whose groups are graded and read by processes of this machine.

1. metrics and samples are those of a run without them, to the last bit: on-policy, with older rollouts, with dynamic sampling, resumed;
2. the first group of a step is handed over before its last one is sampled; 3. how many processes there are by default: none for a small
step or a small machine; 4. rewards of Ray stay Ray's.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from onpolicy.annotation.pooled_scorer import PooledScorer
from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.run import placement
from onpolicy.run.assemble import assemble
from onpolicy.run.display import Display
from onpolicy.run.placement import annotation_workers
from onpolicy.utils.worker_processes import WorkerProcesses
from tests.runs import metrics, run_here, write_config

REWARDS = [
    {
        "name": "tests.annotation.pool_rewards:tenths",
        "scale": {"name": "linear", "initial": 1.0, "final": 0.0, "end": 3},
    },
    {"name": "tests.annotation.pool_rewards:later", "weight": 0.2},
    {"name": "tests.annotation.pool_rewards:closed_over", "weight": 0.2},
    {"name": "saturating_floor", "floor": 4.4},
]


def config_of(folder: Path, **changes: Any) -> Path:
    return write_config(
        folder, rewards=REWARDS, epistemic={"baseline": 2}, logging={"trackers": ["jsonl"], "samples": 6}, **changes
    )


@pytest.mark.process
@pytest.mark.parametrize(
    "overrides",
    [(), ("generator.max_staleness=1",), ("data.dynamic_sampling=2",)],
    ids=["on-policy", "older rollouts", "dynamic sampling"],
)
def test_a_run_is_the_same_to_the_last_bit(overrides: Sequence[str], tmp_path: Path) -> None:
    config = config_of(tmp_path)
    rows, samples = [], []
    for count in (0, 2):
        folder = tmp_path / f"run-{count}"
        own = (*overrides, f"run_dir={folder}", f"distributed.num_annotation_workers={count}")
        if not overrides:  # stopped and resumed
            assert run_here(config, *own, "steps=1") == 0
        assert run_here(config, *own) == 0
        rows.append(metrics(folder))
        samples.append((folder / "samples.jsonl").read_text())
    assert rows[0] == rows[1] and samples[0] == samples[1]
    assert len([row for row in rows[0] if row["step"]]) == 3 and "epistemic/self_doubt/rate_per_1k" in rows[0][-1]


@pytest.mark.process
def test_a_run_goes_on_with_another_number_of_them(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    for name, counts in {"same": (0, 0), "other": (2, 0)}.items():
        for steps, count in enumerate(counts, 1):
            own = (f"run_dir={tmp_path / name}", f"distributed.num_annotation_workers={count}", f"steps={steps}")
            assert run_here(config, *own) == 0
    assert metrics(tmp_path / "same") == metrics(tmp_path / "other")


@pytest.mark.process
def test_a_group_is_handed_over_before_the_last_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transformers generator samples one group after the other here."""
    config = config_of(tmp_path, generator={"name": "transformers", "group_size": 3, "max_tokens": 8, "batch_size": 3})
    sampled, handed = [0], list[int]()
    submit = WorkerProcesses.submit

    def watched(processes: WorkerProcesses, task: Any) -> Future[Any]:
        handed.append(sampled[0])
        return submit(processes, task)

    monkeypatch.setattr(WorkerProcesses, "submit", watched)
    overrides = ["distributed.num_annotation_workers=1", "preflight.enabled=false", "epistemic.baseline=0"]
    run = assemble(resolve(load(config, overrides)), tmp_path / "run", Display(3))
    try:
        run.generator.on_progress = lambda done, total, tokens: sampled.__setitem__(0, tokens)
        groups, _ = run.sampler.sample(1)
        in_all = sum(r.num_sampled for scored in groups for r in scored.group.rollouts)
        assert len(handed) == len(groups) == 2 and handed[0] < handed[1] < in_all
        assert all(scored.texts is not None for scored in groups)
    finally:
        run.close()


def test_how_many_there_are(tmp_path: Path) -> None:
    def count(cores: int, *overrides: str) -> int:
        return annotation_workers(resolve(load(config, [*overrides])), cores)

    config = config_of(tmp_path)
    large = ("data.prompts_per_step=64", "generator.group_size=8", "generator.max_tokens=1024")
    assert [count(cores, *large) for cores in (2, 3, 4, 8, 16, 96)] == [0, 0, 1, 2, 4, 8]
    assert count(96) == 0 and count(96, "distributed.num_annotation_workers=3") == 3
    assert count(96, *large, "distributed.num_annotation_workers=0") == 0


def test_a_small_step_starts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "available_cores", lambda: 96)
    run = assemble(resolve(load(config_of(tmp_path), ["epistemic.baseline=0"])), tmp_path / "run", Display(3))
    run.close()
    assert not isinstance(run.scorer, PooledScorer)
