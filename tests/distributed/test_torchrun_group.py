"""Ranks of a launcher that would sample with different generators, and whose generators rest; the ranks themselves are stand-ins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from onpolicy.config.resolve import load_resolved
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.distributed import torchrun_group
from onpolicy.distributed.adapter_plan import AdapterPlan
from onpolicy.distributed.torchrun_group import Rank0Driver, RankGenerators, refuse_other_generators, serve_rank
from onpolicy.distributed.trainer_group import TrainerWorker
from onpolicy.protocols import AdapterShape
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.types import Sampling
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.timer import PhaseTimer
from tests.runs import write_config


class AfterOneWithVllm(SingleProcess):
    """Rank 1, whose rank 0 has chosen vLLM."""

    def all_gather(self, value: Any) -> list[Any]:
        return [("vllm", "vllm (chosen here: vLLM is installed)"), value]


def chose(folder: Path, name: str, *overrides: str) -> ResolvedConfig:
    resolved = load_resolved(write_config(folder), overrides)
    plugin = replace(resolved.generator.plugin, name=name, chosen_because="vLLM is not installed here")
    return replace(resolved, generator=replace(resolved.generator, plugin=plugin))


@pytest.mark.parametrize("start", [serve_rank, lambda resolved: Rank0Driver(resolved, cast(Any, None), PhaseTimer())])
def test_generators_that_differ_between_ranks_are_refused(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = SimpleNamespace(trainer=SimpleNamespace(collectives=AfterOneWithVllm()))
    for name, stand_in in (("TrainerWorker", lambda *_, **__: worker), ("open_model", lambda _: None), ("STOPS", ())):
        monkeypatch.setattr(torchrun_group, name, stand_in)
    with pytest.raises(ConfigError) as found:
        start(chose(tmp_path, "transformers"))
    assert str(found.value).startswith(
        "generator: got vllm (chosen here: vLLM is installed) on rank 0 and transformers (chosen here: vLLM is not installed here) "
        "on rank 1, expected the same on every rank"
    )


def test_generators_that_are_the_same_or_elsewhere_are_not(tmp_path: Path) -> None:
    refuse_other_generators(chose(tmp_path, "vllm"), AfterOneWithVllm())
    refuse_other_generators(chose(tmp_path, "transformers", "distributed.num_generators=1"), AfterOneWithVllm())


class RecordingGenerator:
    """A rank's own."""

    def __init__(self, calls: list[str], rank: int) -> None:
        self.calls, self.rank = calls, rank
        self.sampling, self.policy_version, self.on_progress = Sampling(), 0, lambda done, total, tokens: None

    def rest(self) -> None:
        self.calls.append(f"rest {self.rank}")


def test_all_ranks_engines_rest_together() -> None:
    calls: list[str] = []
    workers = [SimpleNamespace(generator=RecordingGenerator(calls, rank)) for rank in range(3)]

    def call_all(method: str, *arguments: Any) -> Any:
        for worker in workers:
            TrainerWorker.call(cast(Any, worker), method, arguments)

    driver: Any = SimpleNamespace(call_all=call_all, worker=workers[0])
    RankGenerators(driver, cast(Any, workers[0].generator)).rest()
    assert calls == ["rest 0", "rest 1", "rest 2"]


SHAPE = AdapterShape(4, ("q_proj",))


def test_every_other_ranks_engine_is_beside_its_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls, from_rank_0 = [], list[str](), [("generator.rest", ()), (torchrun_group.QUIT, ())]
    worker = SimpleNamespace(trainer=SimpleNamespace(collectives=SingleProcess()))
    worker.call = lambda method, arguments: TrainerWorker.call(cast(Any, worker), method, arguments)

    def local_generator(resolved: Any, model: Any, **given: Any) -> RecordingGenerator:
        made.append(given)
        return RecordingGenerator(calls, 1)

    for name, stand_in in (
        ("TrainerWorker", lambda *_, **__: worker),
        ("open_model", lambda _: None),
        ("STOPS", ()),
        ("local_generator", local_generator),
        ("adapter_plan", lambda *_: AdapterPlan(SHAPE)),
        ("broadcast_call", lambda _: from_rank_0.pop(0)),
        ("leave_at_exit", lambda: None),
    ):
        monkeypatch.setattr(torchrun_group, name, stand_in)
    assert serve_rank(chose(tmp_path, "vllm")) == 0
    assert made == [{"beside_trainer": True, "adapter": SHAPE}] and calls == ["rest 1"]
