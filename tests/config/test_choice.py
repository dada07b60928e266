"""``generator: auto``: vLLM where it is installed, else transformers; what ran is recorded, and never changed silently."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.cli import main
from onpolicy.config.load import to_yaml
from onpolicy.config.resolve import load_resolved
from onpolicy.run.doctor import engine
from tests.runs import run_here, write_config

Hide = Callable[[bool], None]


@pytest.fixture
def vllm_is_there(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Makes Python find vLLM, or not."""
    real = importlib.util.find_spec

    def set_to(there: bool) -> None:
        found = real("json") if there else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: found if name == "vllm" else real(name, *a))

    return set_to


def a_config(folder: Path, **generator: Any) -> Path:
    return write_config(folder, generator={"group_size": 3, "max_tokens": 8, **generator})


@pytest.mark.parametrize(("there", "chosen"), [(True, "vllm"), (False, "transformers")])
@pytest.mark.parametrize("given", ["generator=auto", "generator.name=auto", ""])
def test_what_is_installed_decides(there: bool, chosen: str, given: str, tmp_path: Path, vllm_is_there: Hide) -> None:
    """Also where nothing is said."""
    vllm_is_there(there)
    resolved = load_resolved(a_config(tmp_path), [given] if given else [])
    assert resolved.generator.plugin.name == chosen
    assert yaml.safe_load(to_yaml(resolved.config))["generator"]["name"] == chosen


def test_check_says_which_one_and_why(tmp_path: Path, vllm_is_there: Hide, capsys: pytest.CaptureFixture[str]) -> None:
    vllm_is_there(False)
    assert main(["check", str(a_config(tmp_path))]) == 0
    assert "transformers (chosen here: vLLM is not installed here)" in " ".join(capsys.readouterr().out.split())


def test_a_run_says_and_records_it_and_another_generator_does_not_resume_it(
    tmp_path: Path, vllm_is_there: Hide, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = a_config(tmp_path), tmp_path / "run"
    vllm_is_there(False)
    assert run_here(config, f"run_dir={run}", "steps=1") == 0
    assert "transformers (chosen here" in " ".join(capsys.readouterr().out.split())
    assert yaml.safe_load((run / "config.yaml").read_text())["generator"]["name"] == "transformers"
    assert main(["check", str(run / "config.yaml")]) == 0  # what was recorded is no choice any more
    assert "chosen here" not in capsys.readouterr().out
    vllm_is_there(True)
    before = (run / "config.yaml").read_bytes()
    assert run_here(config, f"run_dir={run}") == 2
    said = capsys.readouterr().err
    assert (
        "generator.name: 'transformers' there, 'vllm' here" in said
        and "vllm was chosen here: vLLM is installed" in said
    )
    assert (run / "config.yaml").read_bytes() == before
    assert run_here(config, "generator.name=transformers", f"run_dir={run}", "steps=2") == 0


def test_a_run_of_vllm_where_it_is_missing_is_refused(
    tmp_path: Path, vllm_is_there: Hide, capsys: pytest.CaptureFixture[str]
) -> None:
    """By another choice, and by the name itself."""
    vllm_is_there(False)
    config, run = a_config(tmp_path), tmp_path / "run"
    assert run_here(config, f"run_dir={run}", "steps=1") == 0
    recorded = run / "config.yaml"
    recorded.write_text(recorded.read_text().replace("name: transformers", "name: vllm"))
    capsys.readouterr()
    assert run_here(config, f"run_dir={run}") == 2
    assert "generator.name: 'vllm' there, 'transformers' here" in capsys.readouterr().err
    assert run_here(config, "generator.name=vllm", f"run_dir={run}") == 2
    assert "generator: needs the package vllm, which is not installed" in capsys.readouterr().err
    shutil.rmtree(run)


@pytest.mark.parametrize("missing", ["gpu_memory_utilization", "tensor_parallel_size"])
def test_an_option_of_the_one_that_was_not_chosen(
    missing: str, tmp_path: Path, vllm_is_there: Hide, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm_is_there(False)
    assert main(["check", str(a_config(tmp_path)), f"generator.{missing}=1"]) == 2
    said = capsys.readouterr().err
    assert f"generator.{missing}: 'transformers' (chosen here: vLLM is not installed here) has no such option" in said


def test_the_doctor_says_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onpolicy.run.doctor.installed_version", lambda name: None)
    (check,) = engine()
    assert check.found == "not installed; generator.name=auto takes transformers"
