"""The Python interface: 1. a run from rows and functions, its result, and how it is resumed; 2. an evaluation of rows; 3. what the
command line prints for a mistake is raised with the same text; 4. configs in every form; 5. nothing heavy is loaded before it is used."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onpolicy
from examples import minimal
from onpolicy.cli import main
from onpolicy.data import file
from onpolicy.run.api import _written
from onpolicy.run.launch import TrainResult
from onpolicy.utils.errors import ConfigError
from tests.runs import metrics, write_config


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    folder = tmp_path_factory.mktemp("minimal")
    return onpolicy.train(minimal.CONFIG, [f"run_dir={folder}"], data=minimal.ROWS, rewards=[minimal.correct])


def test_a_run_from_rows_and_a_function(result: TrainResult) -> None:
    assert result.step == 3 and result.stopped is None and result.model_path is not None
    assert (result.model_path / "model.safetensors").is_file()
    logged = metrics(result.folder)
    assert [row["step"] for row in logged] == [1, 2, 3]
    assert (
        result.metrics["distill/divergence"] == logged[-1]["distill/divergence"] != result.first["distill/divergence"]
    )
    assert result.first["reward/mean"] == logged[0]["reward/mean"] > 0, "the reasoner solves some of these"
    assert [json.loads(line) for line in (result.folder / "data.jsonl").read_text().splitlines()] == minimal.ROWS


def test_it_is_resumed_with_the_same_rows_alone(result: TrainResult, capsys: pytest.CaptureFixture[str]) -> None:
    again: dict[str, Any] = {"overrides": [f"run_dir={result.folder}", "steps=4"], "rewards": [minimal.correct]}
    with pytest.raises(ConfigError, match=r"data: the rows differ from those in .*data\.jsonl"):
        onpolicy.train(minimal.CONFIG, data=minimal.ROWS[:2], **again)
    assert onpolicy.train(minimal.CONFIG, data=minimal.ROWS, **again).step == 4
    assert "resumed at step 3 of 4" in capsys.readouterr().out


def test_rows_are_read_as_the_config_says(tmp_path: Path) -> None:
    section = {
        "name": "gym",
        "task": "chain_sum",
        "prompts_per_step": 2,
        "prompt_template": "{problem} !",
        "columns": {"prompt": "p"},
    }
    found = _written([{"p": "1 + 1?"}], tmp_path / "data.jsonl", section, "data")
    kept = {name: value for name, value in section.items() if name != "task"}
    assert found == {**kept, "name": "file", "path": str(tmp_path / "data.jsonl")}
    (prompt,) = file(path=found["path"], prompt_template=found["prompt_template"], columns=found["columns"])
    assert prompt.messages[0]["content"] == "1 + 1? !"


def test_an_evaluation_of_rows(tmp_path: Path) -> None:
    overrides = [f"run_dir={tmp_path}", "eval.samples_per_problem=2", "eval.pass_at=[2]"]
    found = onpolicy.evaluate(minimal.CONFIG, overrides, sets={"mine": minimal.ROWS}, rewards=[minimal.correct])
    assert 0 < found["eval/mine/avg@2"] <= found["eval/mine/pass@2"] <= 1 and found["eval/mine/problems"] == 4


def test_a_report_of_a_run(result: TrainResult, tmp_path: Path) -> None:
    onpolicy.report([result.folder], tmp_path / "page.html")
    assert "distill/divergence" in (tmp_path / "page.html").read_text()


def local() -> Any:
    def inside(completion: str) -> float:
        return 1.0

    return inside


@pytest.mark.parametrize("reward", [lambda completion: 1.0, local(), minimal.ROWS.copy, functools.partial(local())])
def test_a_reward_that_cannot_be_found_again_is_refused(reward: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards: got .*, expected a function"):
        onpolicy.train(minimal.CONFIG, [f"run_dir={tmp_path}"], data=minimal.ROWS, rewards=[reward])


def test_a_partial_is_a_reward_with_options(tmp_path: Path) -> None:
    from onpolicy.rewards.length import brevity
    from onpolicy.run.api import _reward

    assert _reward(functools.partial(brevity, budget=9)) == {"name": "onpolicy.rewards.length:brevity", "budget": 9}


def test_mistakes_say_what_the_command_line_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    mistakes = ["trainer.lrr=1", "generator.max_tokens=0"]
    with pytest.raises(onpolicy.UserError) as raised:
        onpolicy.train(config, mistakes)
    assert main(["train", str(config), *mistakes]) == 2
    assert capsys.readouterr().err.strip() == f"onpolicy train: {raised.value}"
    assert "trainer.lrr" in str(raised.value) and "generator.max_tokens: got 0" in str(raised.value)


def test_rows_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data: expected rows as dictionaries of JSON values"):
        onpolicy.train(minimal.CONFIG, [f"run_dir={tmp_path}"], data=[{"prompt": object()}])


def test_a_config_in_every_form(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    loaded = onpolicy.load_config(path, ["steps=7"])
    assert loaded.steps == 7 and onpolicy.load_config(loaded) == loaded
    assert onpolicy.load_config(loaded, ["steps=8"]).steps == 8 and loaded.steps == 7
    assert onpolicy.load_config("sdpo", ["model.path=m", "data.path=d"]).model.path == "m"
    assert [term.name for term in onpolicy.build_objective(path).terms] == ["distill", "policy_gradient"]
    with pytest.raises(ConfigError, match="steps_"):
        onpolicy.load_config({"steps_": 3, "model": {"path": "m"}})


def test_measures() -> None:
    import torch

    student, teacher = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.9, 0.1]]]).log()
    assert onpolicy.forward_kl(student, teacher).item() == pytest.approx(0.3681, abs=1e-4)
    assert onpolicy.reverse_kl(student, teacher).item() == pytest.approx(0.5108, abs=1e-4)
    assert onpolicy.pass_at_k(4, 1, 2) == pytest.approx(0.5)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'tarin'; it has .*train"):
        onpolicy.tarin  # noqa: B018


@pytest.mark.process
def test_importing_loads_nothing_heavy_and_the_loops_module_does_not_hide_the_function() -> None:
    code = (
        "import sys, onpolicy\n"
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)\n"
        "from onpolicy.train import train\n"
        "assert onpolicy.train is not train and onpolicy.train.__module__ == 'onpolicy.run.api'\n"
        "assert callable(onpolicy.train) and 'train' in dir(onpolicy)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
