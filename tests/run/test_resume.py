"""What a run is, when it is resumed.

1. other problems under the same name are refused, and the first that differs is named; 2. so are other weights of a model that is read
again, wherever they matter, and another template; 3. a learning rate that falls over all steps does not allow more of them; 4. settings
are compared as what they come to; 5. half a last line of any file of the run stops nobody; 6. arms of a sweep that have read different
things under one name are told of.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onpolicy.cli import main
from onpolicy.config.resolve import load_resolved
from onpolicy.data import load_prompts
from onpolicy.experiments.sweep.contents import content_confounds
from onpolicy.experiments.sweep.grid import cells
from onpolicy.run import inputs
from onpolicy.run.evaluation_files import read_results
from onpolicy.run.inputs import keep_inputs
from onpolicy.run.run_dir import logged, prepare_folder, with_precision_of
from onpolicy.trainer.forward_settings import ForwardSettings
from onpolicy.utils.json_lines import BrokenLine, read_json_lines
from tests.runs import metrics, run_here, write_config
from tests.tiny import CHATML, tiny_model_dir

SETS = {"easy": {"name": "file", "path": "easy.jsonl"}}


def reversed_rows(rows: list[str]) -> list[str]:
    return rows[::-1]


def other_answer(rows: list[str]) -> list[str]:
    return [*rows[:2], rows[2].replace('"answer": "2"', '"answer": "3"'), *rows[3:]]


def two_fewer(rows: list[str]) -> list[str]:
    return rows[:-2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (reversed_rows, "data: 12 problems, in another order"),
        (other_answer, "data: 12 problems; the first that differs is number 3, 'data/3'"),
        (two_fewer, "data: 12 problems there, 10 here; the first that differs is number 11"),
    ],
)
def test_other_problems_are_refused(
    tmp_path: Path, change: Callable[[list[str]], list[str]], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config(tmp_path), f"run_dir={tmp_path / 'run'}"
    assert run_here(config, run, "steps=1") == 0
    before, data = metrics(tmp_path / "run"), tmp_path / "data.jsonl"
    rows = data.read_text().splitlines()
    data.write_text("\n".join(change(rows)) + "\n")
    assert run_here(config, run, "steps=2") == 2
    assert said in capsys.readouterr().err and metrics(tmp_path / "run") == before
    data.write_text("\n".join(rows) + "\n")
    assert run_here(config, run, "steps=2") == 0, "the same content written anew is the same"


def test_a_baseline_that_grows_with_the_steps_is_no_other_content(tmp_path: Path) -> None:
    """More steps visit more problems, which then have a reference rate; the problems are the same."""
    config, run = write_config(tmp_path, epistemic={"baseline": 2}), f"run_dir={tmp_path / 'run'}"
    assert run_here(config, run, "steps=1") == 0 and run_here(config, run, "steps=2") == 0


def test_another_evaluation_set_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("easy.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    config = write_config(tmp_path, eval={"every": 1, "samples_per_problem": 1, "pass_at": [1], "sets": SETS})
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=1") == 0
    Path("easy.jsonl").write_text('{"problem": "1 + 2?", "answer": "3"}\n')
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=2") == 2
    assert "eval.sets.easy: 1 problems; the first that differs is number 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [["teacher={name: frozen}"], ["trainer.lora_rank=2"], ["teacher={name: live}", "objective[1]={name: ref_kl}"]],
    ids=["frozen teacher", "adapters", "reference model"],
)
def test_another_start_model_is_refused(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config(tmp_path), f"run_dir={tmp_path / 'run'}"
    assert run_here(config, run, "steps=1", *overrides) == 0
    tiny_model_dir(tmp_path / "model", seed=1)
    assert run_here(config, run, "steps=2", *overrides) == 2
    assert "model.path: model.safetensors changed" in capsys.readouterr().err
    tiny_model_dir(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("about this model")
    assert run_here(config, run, "steps=2", *overrides) == 0, "the same weights written anew are the same"


def test_another_teacher_and_another_template_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(CHATML)
    own = [f"teacher={{name: model, path: {tiny_model_dir(tmp_path / 'other', seed=2)}}}"]
    own += [f"rendering.chat_template={template}", f"run_dir={tmp_path / 'run'}"]
    config = write_config(tmp_path)
    assert run_here(config, *own, "steps=1") == 0
    template.write_text(CHATML.replace("assistant", "helper"))
    tiny_model_dir(tmp_path / "other", seed=3)
    assert run_here(config, *own, "steps=2") == 2
    said = capsys.readouterr().err
    assert "teacher.path: model.safetensors changed" in said and "rendering.chat_template: chat.jinja changed" in said


def test_large_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of training touches every stride; size, beginning and each sample count."""
    monkeypatch.setattr(inputs, "WHOLE", 100)
    monkeypatch.setattr(inputs, "STRIDE", 64)
    monkeypatch.setattr(inputs, "SAMPLE", 16)
    file, content = tmp_path / "model.safetensors", bytearray(300)
    file.write_bytes(content)
    found = {inputs.file_digest(file)}
    for place in (63, 64, 143, 299):  # in the header, at both ends of a sample, in the last stride's sample
        changed = content.copy()
        changed[place if place != 299 else 256] = 1
        file.write_bytes(changed)
        found.add(inputs.file_digest(file))
    file.write_bytes(content + b"\0")
    assert len(found | {inputs.file_digest(file)}) == 6


def test_a_folder_without_a_record_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    assert run_here(config, f"run_dir={run}", "steps=1") == 0
    (run / inputs.INPUTS).unlink()
    capsys.readouterr()
    assert run_here(config, f"run_dir={run}", "steps=2") == 0
    assert "cannot be compared" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_rate_that_falls_over_all_steps_does_not_allow_others(
    tmp_path: Path, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    own = [f"run_dir={run}", f"trainer.lr_schedule={schedule}"]
    assert run_here(config, *own, "steps=3") == 0
    for steps in (6, 2):
        assert run_here(config, *own, f"steps={steps}") == 2
        said = capsys.readouterr().err
        assert f"a run of 3 steps, got {steps}" in said and f"lr_schedule={schedule}" in said and "steps=3" in said
    assert run_here(config, *own, "steps=3") == 0
    assert [row["train/lr"] for row in metrics(run)] == sorted((r["train/lr"] for r in metrics(run)), reverse=True)


def test_more_steps_while_the_rate_only_rises(tmp_path: Path) -> None:
    """As far as the warm-up goes both runs have the same rates: a resumed run is what an uninterrupted one would have been."""
    config, own = write_config(tmp_path), ["trainer.lr_schedule=cosine", "trainer.warmup_steps=2"]
    assert run_here(config, f"run_dir={tmp_path / 'run'}", *own, "steps=2") == 0
    assert run_here(config, f"run_dir={tmp_path / 'run'}", *own, "steps=4") == 0
    assert run_here(config, f"run_dir={tmp_path / 'whole'}", *own, "steps=4") == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_settings_are_compared_as_what_they_come_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_config(tmp_path), f"run_dir={tmp_path / 'run'}"
    assert run_here(config, run, "steps=1", "trainer.lr='1e-3'", "contexts.teacher=reference_solution") == 0
    same = [
        "trainer.lr=0.001",
        "trainer.weight_decay=0",
        "contexts.teacher={name: reference_solution, field: solution}",
    ]
    assert run_here(config, run, "steps=2", *same, "objective[0].support={name: full}") == 0
    assert run_here(config, run, "steps=3", *same, "contexts.teacher.field=answer") == 2
    assert "contexts.teacher.field: 'solution' there, 'answer' here" in capsys.readouterr().err
    assert run_here(config, run, "steps=3", *same, "trainer.betas=[0.8, 0.999]") == 2
    assert "trainer.betas[0]: 0.9 there, 0.8 here" in capsys.readouterr().err


def test_an_evaluation_is_continued_with_the_same_model_and_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "easy.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    sets = {"easy": {"name": "file", "path": str(tmp_path / "easy.jsonl")}}
    config = write_config(tmp_path, eval={"samples_per_problem": 1, "pass_at": [1], "sets": sets})
    command = ["eval", str(config), f"run_dir={tmp_path / 'eval'}"]
    assert main(command) == 0
    tiny_model_dir(tmp_path / "model")
    assert main([*command, "generator.top_k=0", "generator.temperature=1"]) == 0, "defaults, and weights written anew"
    tiny_model_dir(tmp_path / "model", seed=1)
    assert main(command) == 2
    assert "weights.model.safetensors: " in capsys.readouterr().err


def test_half_a_last_line_stops_nobody(tmp_path: Path) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    assert run_here(config, f"run_dir={run}", "logging.tokens_every=1", "steps=2") == 0
    for name in ("metrics.jsonl", "samples.jsonl", "tokens.jsonl"):
        text = (run / name).read_text()
        (run / name).write_text(text + text.splitlines()[0][: len(text) // 9])
    assert main(["report", str(run)]) == 0 and len(logged(run)) == 2
    assert run_here(config, f"run_dir={run}", "logging.tokens_every=1", "steps=3") == 0
    assert [row["step"] for row in read_json_lines(run / "tokens.jsonl")] == [1, 2, 3]


def test_lines_of_json(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_json_lines(file) == [] and read_results(file) == {}
    whole = json.dumps({"text": "a\u2028b é"}, ensure_ascii=False)
    for rest in (
        "",
        "\n",
        "\n" + whole[:-1],
        "\n" + "\0" * 9,
        "\n12",
        '\n{"a": "é'.encode()[:-1].decode(errors="ignore"),
    ):
        file.write_text(f"{whole}\n\n{whole}{rest}")
        assert read_json_lines(file) == [json.loads(whole)] * 2, rest
    file.write_bytes(whole.encode() + b"\n" + '{"a": "é'.encode()[:-1])
    assert read_json_lines(file) == [json.loads(whole)]
    file.write_text(f'{whole}\n{{"a": \n{whole}\n')
    with pytest.raises(BrokenLine, match="line 2"):
        read_json_lines(file)


def test_arms_of_a_sweep_that_read_other_content_are_told_of(tmp_path: Path) -> None:
    """A file that changed between two calls, each of which ran some of the arms; an axis that names other data is none."""
    config = write_config(tmp_path)
    (tmp_path / "other.jsonl").write_text((tmp_path / "data.jsonl").read_text())
    arms = {"plain": {}, "slow": {"trainer.lr": 1e-5}, "other": {"data.path": str(tmp_path / "other.jsonl")}}
    grid = {"config": config.name, "arms": arms, "seeds": [0], "axes": ["trainer", "data.path"]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    runs = list(cells(tmp_path / "grid.yaml", tmp_path / "out", ()))
    for cell in runs:
        problems = load_prompts(cell.settings.data["path"])
        keep_inputs(cell.folder, {"data": problems}, {"model.path": {"model.safetensors": "ab"}})
    assert list(content_confounds(runs)) == []
    for cell in runs[1:]:  # both now say something else, and one of them under the same name as the first
        keep_inputs(cell.folder, {"data": problems[::-1]}, {"model.path": {"model.safetensors": cell.arm}})
    found = [(confound.arm, confound.key) for confound in content_confounds(runs)]
    assert sorted(found) == [
        ("other", "the content of model.path"),
        ("slow", "the content of data"),
        ("slow", "the content of model.path"),
    ]


def test_a_run_goes_on_in_the_precision_in_which_it_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine whose device would choose another one: the choice alone is a GPU's, the computing is the CPU's."""

    def trainer_in(folder: Path) -> Any:
        return yaml.safe_load((folder / "config.yaml").read_text())["trainer"]

    config, run, other = write_config(tmp_path), tmp_path / "run", tmp_path / "other"
    assert run_here(config, f"run_dir={run}", "steps=1") == 0
    assert "computes in float32 on cpu" in " ".join(capsys.readouterr().out.split())
    assert (trainer_in(run)["precision"], trainer_in(run)["gradient_checkpointing"]) == ("float32", False)
    choose = ForwardSettings.on
    monkeypatch.setattr(ForwardSettings, "on", lambda self, device, **more: choose(self, torch.device("cuda"), **more))
    assert run_here(config, f"run_dir={run}", "steps=2") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "computes in float32 on cpu, weights and updates float32, layers recomputed" in said
    assert "this run computes in float32, as it began, although `auto` is bfloat16 on cpu" in said
    assert (trainer_in(run)["precision"], trainer_in(run)["gradient_checkpointing"]) == ("float32", True)
    assert run_here(config, f"run_dir={other}", "steps=1", "preflight.logprob_tolerance=1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "computes in bfloat16 on cpu" in said and "forward passes run as they should (bfloat16 on cpu)" in said
    assert trainer_in(other)["precision"] == "bfloat16"
    assert run_here(config, f"run_dir={other}", "trainer.precision=float32") == 2, "a setting that is given is compared"
    assert "trainer.precision: 'bfloat16' there, 'float32' here" in " ".join(capsys.readouterr().err.split())


def test_a_run_goes_on_with_moments_kept_in_another_way(tmp_path: Path) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    for steps, moments in enumerate(("8bit", "host", "8bit"), 1):
        assert run_here(config, f"run_dir={run}", f"steps={steps}", f"trainer.moments={moments}") == 0
        assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["moments"] == moments
    assert [row["step"] for row in metrics(run) if "train/loss" in row] == [1, 2, 3]


def test_a_run_that_says_nothing_of_its_precision_began_in_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    assert run_here(config, f"run_dir={run}", "steps=1") == 0
    saved = yaml.safe_load((run / "config.yaml").read_text())
    del saved["trainer"]["precision"], saved["trainer"]["gradient_checkpointing"]
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    choose = ForwardSettings.on
    monkeypatch.setattr(ForwardSettings, "on", lambda self, device, **more: choose(self, torch.device("cuda"), **more))
    assert run_here(config, f"run_dir={run}", "steps=2") == 0
    assert "although `auto` is bfloat16" in " ".join(capsys.readouterr().out.split())


def test_why_a_generator_was_chosen_is_said_when_a_run_goes_on_too(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, generator={"group_size": 3, "max_tokens": 8}), tmp_path / "run"
    resolved = load_resolved(config)
    prepare_folder(run, resolved)
    (run / "checkpoints").mkdir()
    again = with_precision_of(run, resolved)
    assert again.trainer.plugin.options["precision"] == again.config.trainer["precision"] == "float32"
    assert again.generator.plugin.chosen_because == resolved.generator.plugin.chosen_because != ""
