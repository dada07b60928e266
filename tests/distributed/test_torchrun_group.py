"""Ranks of a launcher that would sample with different generators; the ranks themselves are stand-ins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from onpolicy.config.resolve import load_resolved
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.distributed import torchrun_group
from onpolicy.distributed.torchrun_group import Rank0Driver, refuse_other_generators, serve_rank
from onpolicy.trainer.collectives import SingleProcess
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
