"""What a user gets wrong outside of the config: each ends with one clear line, exit code 2, and nothing started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.runs import run_here, write_config
from tests.tiny import tiny_model


def row(**changes: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "solution": "four", **changes}


def write_rows(folder: Path, *rows: Any) -> None:
    (folder / "data.jsonl").write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))


def no_tokenizer(folder: Path) -> None:
    for file in (folder / "model").glob("tokenizer*"):
        file.unlink()


def no_template(folder: Path) -> None:
    (folder / "model" / "chat_template.jinja").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model" / "model.safetensors").unlink()


def unscored_head(folder: Path) -> None:
    """Weights that give nan everywhere."""
    model = tiny_model()
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    model.save_pretrained(folder / "model")


CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "missing data file": (lambda f: (f / "data.jsonl").unlink(), [], ["data.jsonl", "does not exist"]),
    "empty dataset": (lambda f: write_rows(f), [], ["data.jsonl", "holds no problems"]),
    "bad row": (lambda f: write_rows(f, row(), "{oops"), [], ["1 of 2 rows", "row 2", "data.on_bad_row=skip"]),
    "empty prompt": (lambda f: write_rows(f, row(prompt=" ")), [], ["row 1", "'prompt' is empty"]),
    "row without an answer": (
        lambda f: write_rows(f, row(answer=None)), ["rewards=[math_answer]"],
        ["no reference answer", "math_answer", "'data/1'", "data.columns"]),
    "row without a solution": (lambda f: write_rows(f, row(solution=None)), [], ["'data/1'", "no 'solution'"]),
    "prompt too long": (lambda f: write_rows(f, row(prompt="x" * 500)), ["rendering.max_prompt_tokens=100"],
        ["prompt 'data/1' (rendering.max_prompt_tokens)", "the limit is 100", "overlong=drop"]),
    "privileged prompt too long": (lambda f: write_rows(f, row(solution="x" * 500)), ["rendering.max_teacher_prompt_tokens=200"],
        ["contexts.teacher", "rendering.max_teacher_prompt_tokens", "the limit is 200"]),
    "no such model": (lambda f: shutil.rmtree(f / "model"), [], ["model.path", "does not exist"]),
    "folder without a model": (lambda f: (f / "model" / "config.json").unlink(), [], ["model.path", "config.json"]),
    "model without tokenizer": (no_tokenizer, [], ["model.path", "no tokenizer"]),
    "tokenizer without template": (no_template, [], ["no chat template", "rendering.chat_template"]),
    "model without weights": (no_weights, [], ["model.path", "cannot be loaded"]),
    "template file missing": (lambda f: None, ["rendering.chat_template=nope.jinja"], ["rendering.chat_template", "nope.jinja"]),
    "no signal": (lambda f: None, ["contexts.teacher={name: successful_sibling}", "rewards=[{name: boxed_format}]",
        "objective=[{name: distill, divergence: forward_kl}]"], ["no rollout carries a signal", "0 have a teacher"]),
    "teacher is the student": (lambda f: None, ["contexts.teacher={name: none}", "teacher={name: live}",
        "objective=[{name: distill, divergence: forward_kl}]"], ["the loss is 0 by construction"]),
    "completion longer than the window": (lambda f: None, ["generator.max_tokens=5000"], ["generator.max_tokens", "window of 1024"]),
    "too many problems": (lambda f: None, ["data.coverage.problems=99"], ["data.coverage.problems: got 99", "12"]),
    "template without the field": (lambda f: None, ["contexts.teacher.template='{question} {nope}'"], ["'nope'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, overrides, words = CASES[case]
    config = write_config(tmp_path)
    spoil(tmp_path)
    capsys.readouterr()
    assert run_here(config, f"run_dir={tmp_path / 'run'}", *overrides) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.startswith("onpolicy train: "), error
    missing = [word for word in words if word not in error]
    assert not missing, f"{missing} not in: {error}"
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_long_prompts_can_be_dropped(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    write_rows(tmp_path, row(), row(prompt="x" * 500), row())
    assert (
        run_here(
            config,
            f"run_dir={tmp_path / 'run'}",
            "rendering.max_prompt_tokens=100",
            "rendering.overlong=drop",
            "steps=1",
        )
        == 0
    )
