"""``generator.engine_args``: what a config hands to vLLM.

1. every name is held to vLLM's signature when the config is checked, all problems at once, and vLLM is not imported for it; 2. what
onpolicy sets itself is refused with the option that decides it; 3. the rest reaches ``vllm.LLM`` as it is; 4. the names that are read off
vLLM's source are those of its signature, and what onpolicy sets is known to the check.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onpolicy.cli import main
from onpolicy.config.resolve import load_resolved
from onpolicy.data.rendering import Renderer
from onpolicy.protocols import AdapterShape
from onpolicy.rollout.vllm_args import OPTIONS, REASONS, engine_arguments
from onpolicy.rollout.vllm_generator import VLLMGenerator
from onpolicy.types import Sampling
from onpolicy.utils.errors import ConfigError
from tests.rollout.fake_vllm import FakeLLM, put_in_place
from tests.runs import write_config
from tests.tiny import byte_tokenizer

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="the names are vLLM's")


@pytest.fixture(autouse=True)
def read_anew() -> Iterator[None]:
    engine_arguments.cache_clear()
    yield
    engine_arguments.cache_clear()


def problems(folder: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as found:
        load_resolved(write_config(folder), ["generator.name=vllm", *overrides])
    return found.value.problems


@needs_vllm
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(sys.modules)
    typo = "generator.engine_args={kv_cache_dtyp: fp8}"
    assert problems(tmp_path, typo) == (
        "generator.engine_args.kv_cache_dtyp: unknown argument of vllm.LLM. Did you mean 'kv_cache_dtype'?",
    )
    assert not [name for name in set(sys.modules) - before if name.partition(".")[0] == "vllm"]
    assert main(["check", str(tmp_path / "config.yaml"), "generator.name=vllm", typo]) == 2
    assert "generator.engine_args.kv_cache_dtyp: unknown argument" in capsys.readouterr().err


@needs_vllm
def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "generator.engine_args={seed: 3, enable_sleep_mode: true, block_size: 32, quantisation: fp8, _api_process_rank: 1}",
    )
    assert [text.partition(":")[0].removeprefix("generator.engine_args.") for text in found] == [
        *("seed", "enable_sleep_mode", "quantisation", "_api_process_rank")
    ]
    assert "seed decides it; expected it there" in found[0] and "'quantization'" in found[2]
    assert "onpolicy sets it itself (on a GPU that the engine shares with the trainer" in found[1]


def test_all_that_onpolicy_sets_is_refused(tmp_path: Path) -> None:
    names = [*OPTIONS, *REASONS]
    found = problems(tmp_path, f"generator.engine_args={{{', '.join(f'{name}: 1' for name in names)}}}")
    assert [text.partition(": ")[0] for text in found] == [f"generator.engine_args.{name}" for name in names]
    assert not any("unknown" in text for text in found)


def test_where_vllm_is_missing_only_onpolicys_own_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = problems(tmp_path, "generator.engine_args={dtype: float16, kv_cache_dtyp: fp8}")
    assert problem == "generator.engine_args.dtype: generator.dtype decides it; expected it there."


def test_a_value_that_is_no_mapping(tmp_path: Path) -> None:
    assert problems(tmp_path, "generator.engine_args=3")[0].startswith("generator.engine_args: got 3, expected")


@needs_vllm
def test_values_are_what_yaml_makes_of_them(tmp_path: Path) -> None:
    given = "{kv_cache_dtype: fp8, max_num_batched_tokens: 010, compilation_config: {mode: 0}, attention_backend: null}"
    resolved = load_resolved(write_config(tmp_path), ["generator.name=vllm", f"generator.engine_args={given}"])
    expected = {
        "kv_cache_dtype": "fp8",
        "max_num_batched_tokens": 10,
        "compilation_config": {"mode": 0},
        "attention_backend": None,
    }
    assert resolved.generator.plugin.options["engine_args"] == expected
    assert resolved.config.generator["engine_args"] == expected


def generator(**options: Any) -> FakeLLM:
    VLLMGenerator(renderer=Renderer(byte_tokenizer()), model="m", sampling=Sampling(), max_model_len=64, **options)
    return FakeLLM.made[-1]


def test_they_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch)
    with_them = generator(engine_args={"block_size": 32, "compilation_config": {"mode": 0}}).arguments
    assert with_them == generator().arguments | {"block_size": 32, "compilation_config": {"mode": 0}}


def test_what_onpolicy_sets_on_this_machine_alone_is_refused_before_the_engine_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = put_in_place(monkeypatch)
    expected = r"generator\.engine_args\.enable_chunked_prefill: got True, but onpolicy sets it to False here"
    with pytest.raises(ConfigError, match=expected):
        generator(engine_args={"enable_chunked_prefill": True})
    assert not made


def test_what_vllm_refuses_is_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch)

    def refuses(self: Any, **arguments: Any) -> None:
        raise ValueError("no such cache")

    monkeypatch.setattr(FakeLLM, "__init__", refuses)
    with pytest.raises(
        ConfigError, match=r"generator\.engine_args: vLLM does not start with \{'kv_cache_dtype': 'x'\}: no such cache"
    ):
        generator(engine_args={"kv_cache_dtype": "x"})
    with pytest.raises(ValueError, match=r"^no such cache"):
        generator()


def test_all_that_onpolicy_sets_everywhere_is_known_to_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch)
    on_a_cpu = {"enable_chunked_prefill", "max_num_batched_tokens"}
    source = {"revision": None, "trust_remote_code": False}
    adapter = AdapterShape(4, ("q_proj",))
    found = generator(source=source, adapter=adapter, transfer_backend="nccl").arguments
    assert set(found) - on_a_cpu == {*OPTIONS, *REASONS} - {"enable_sleep_mode"}


@pytest.mark.vllm
def test_the_names_are_those_of_vllms_signature() -> None:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    own = {name for name in inspect.signature(LLM.__init__).parameters if name not in ("self", "kwargs")}
    names = own | {field.name for field in dataclasses.fields(EngineArgs)}
    assert engine_arguments() == {name for name in names if not name.startswith("_")}
    assert {*OPTIONS, *REASONS} <= engine_arguments()
