"""What a run would read, before any weights are loaded.

1. a folder without weights is enough, and the prompts are those of a run; 2. a context that needs rollouts or the model has no text, and
says why; 3. data that are refused end with status 2, as does a problem at which training would stop; 4. lengths, limits and what was
dropped; 5. public datasets' shapes; 6. it fits narrow terminals and shows special tokens, but nothing that data say as one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console

from onpolicy.cli import main
from onpolicy.config.resolve import load_resolved
from onpolicy.data import DataError
from onpolicy.run.check_run import check_run
from onpolicy.run.preview import MEASURED, preview
from onpolicy.run.print_preview import _panel
from onpolicy.types import Message, RolloutGroup
from onpolicy.utils.errors import ConfigError
from tests.data.test_shapes import ANSWERS, ONLY_HUB, OWN, QUESTIONS, TABLE, WORK, shape
from tests.runs import run_here, write_config
from tests.tiny import byte_tokenizer, tiny_model

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"problem": "What is 2 + 2?", "answer": "4", "solution": "Two and two are four.", "feedback": "Count again."},
    {"problem": "What is 3 + 4?", "answer": "7", "solution": "Three and four are seven."},
    {"problem": "What is 1 + 4?", "answer": "5", "solution": "One and four are five."},
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A config whose model has a config and a tokenizer, and no weights."""

    def written(contexts: Mapping[str, Any], rows: Rows = ROWS, **data: Any) -> Path:
        tiny_model().config.save_pretrained(tmp_path / "model")
        byte_tokenizer().save_pretrained(tmp_path / "model")
        config = write_config(tmp_path, contexts=dict(contexts))
        settings = yaml.safe_load(config.read_text())
        settings["objective"] = [{"name": "distill", "divergence": "forward_kl", "context": name} for name in contexts]
        settings["data"] |= data
        config.write_text(yaml.safe_dump(settings))
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return config

    return written


def rows_of(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str, status: int = 0) -> Rows:
    """The rows that ``--json`` prints, and nothing else on standard output."""
    capsys.readouterr()
    assert main(["preview", str(config), "--json", *arguments]) == status
    found: Rows = json.loads(capsys.readouterr().out)
    return found


def test_no_weights_are_needed(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    config = write({"teacher": "reference_solution", "answer": "final_answer"})
    assert not list(config.parent.glob("model/*.safetensors"))
    (row,) = rows_of(capsys, config, "--rows", "1")
    assert row["id"] == "data/1" and row["answer"] == "4"
    assert row["student_prompt"] == "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert "Two and two are four." in row["teacher_prompts"]["teacher"] and row["notes"] == {}
    assert "answer is 4." in row["teacher_prompts"]["answer"] and "four" not in row["teacher_prompts"]["answer"]
    assert row["student_tokens"] == len(byte_tokenizer().encode(row["student_prompt"]))
    assert [r["id"] for r in rows_of(capsys, config, "data.coverage.problems=2")] != ["data/1", "data/2"], "the chosen"
    assert len(rows_of(capsys, config, "--rows", "9")) == 3


def test_the_prompts_are_those_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, teacher={"name": "frozen"})
    own = ["data.prompts_per_step=12", "data.system_prompt=Be brief."]
    assert run_here(config, f"run_dir={tmp_path / 'run'}", "steps=1", "logging.samples=40", *own) == 0
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    ran = {row["prompt_id"]: row for row in map(json.loads, lines)}
    found = rows_of(capsys, config, "--rows", "12", *own)
    assert len(found) == len(ran) == 12
    for row in found:
        for key in ("student_prompt", "teacher_prompts", "answer"):
            assert row[key] == ran[row["id"]][key]


NEED_ROLLOUTS = ["successful_sibling", "failed_sibling", "majority_sibling", "revision", "critique"]


@pytest.mark.parametrize(
    ("context", "note"),
    [*((name, "needs rollouts") for name in NEED_ROLLOUTS), ("regenerated", "asks the model"), ("key_points", "asks the model")],
)  # fmt: skip
def test_what_does_not_exist_yet_is_not_shown(
    write: Callable[..., Path], context: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = rows_of(capsys, write({"teacher": context}), "--rows", "1")
    assert row["teacher_prompts"] == {"teacher": None} and row["notes"] == {"teacher": note}


def talks(group: RolloutGroup, index: int, rewards: Sequence[float]) -> tuple[Message, ...]:
    """A context of a user that prints, and wants to see a rollout whatever its reward."""
    print("annotating", group.prompt.id)
    return (
        *group.prompt.messages,
        {"role": "assistant", "content": group.rollouts[index].text if rewards[index] else "no"},
    )


def test_a_users_own_context(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows_of(capsys, write({"own": f"{__name__}:talks"}), "--rows", "1")
    assert row["teacher_prompts"] == {"own": None} and row["notes"] == {"own": "needs rollouts"}


def test_a_fallback_of_siblings_needs_rollouts_too(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is shown where no sibling succeeds is known; whether it will be shown is not."""
    sibling = {"name": "successful_sibling", "context": "reference_solution"}
    (row,) = rows_of(capsys, write({"teacher": sibling}), "--rows", "1")
    assert row["teacher_prompts"]["teacher"] is None and row["notes"]["teacher"] == "needs rollouts"


def test_what_depends_on_the_answer_alone_is_shown(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = {"name": "reference_solution", "template": "{question} You were {outcome}."}
    config = write({"hints": "feedback", "outcome": outcome, "other": "other_problem", "own": {"name": "none"}})
    first, second = rows_of(capsys, config)
    assert "Count again." in first["teacher_prompts"]["hints"] and "incorrect" in first["teacher_prompts"]["outcome"]
    assert first["notes"] == {"hints": "after a wrong answer", "outcome": "after a wrong answer"}
    assert second["teacher_prompts"]["hints"] is None and second["notes"]["hints"] == "needs rollouts"
    assert first["teacher_prompts"]["own"] == first["student_prompt"]
    shown = first["teacher_prompts"]["other"]
    assert any(row["solution"] in shown for row in ROWS[1:]) and ROWS[0]["solution"] not in shown


def test_refused_data_end_with_their_message(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write({"teacher": "final_answer"}, [*ROWS, {"problem": " ", "answer": "1"}])
    for options in ([], ["--json"]):
        assert main(["preview", str(config), *options]) == 2
        said = capsys.readouterr()
        assert said.out == "" and "data.jsonl, row 4" in said.err and "Traceback" not in said.err
    assert main(["preview", str(config), "data.on_bad_row=skip"]) == 0
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    assert main(["preview", str(config), "data.on_bad_row=skip"]) == 2
    assert "has no tokenizer" in capsys.readouterr().err


def test_a_problem_at_which_training_would_stop(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """It is found wherever it stands in the data, and the first rows are shown all the same."""
    without = [{"problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(MEASURED, MEASURED + 7)]
    config = write({"teacher": "reference_solution"}, [*ROWS * (MEASURED // 3 + 1), *without])
    found = rows_of(capsys, config, "--rows", "1", status=2)
    assert len(found) == 1 and found[0]["teacher_prompts"]["teacher"]
    assert main(["preview", str(config)]) == 2
    said = capsys.readouterr()
    assert "one of 7 errors" in said.err and "has no 'solution'" in said.err and "and 2 more" in said.err
    assert f"of the first {MEASURED} problems" in " ".join(said.out.split())
    (row,) = rows_of(capsys, write({"teacher": "reference_solution"}, without[:1]), status=2)
    assert row["teacher_prompts"]["teacher"] is None and "has no 'solution'" in row["notes"]["teacher"]


def test_problems_without_the_answer_that_a_reward_needs(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """They are found before anything is sampled, and left out where bad rows are."""
    config, graded = write({"own": "none"}, [*ROWS, {"problem": "Why?"}]), "rewards=[math_answer]"
    (*_, last) = rows_of(capsys, config, graded, "--rows", "4", status=2)
    assert last["answer"] is None
    for verb in ("preview", "train"):
        assert main([verb, str(config), graded]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert (
            "1 of 4 problems have no reference answer, which 'math_answer' needs" in said and "on_bad_row=skip" in said
        )
    assert len(rows_of(capsys, config, graded, "data.on_bad_row=skip", "--rows", "4")) == 3
    rows_of(
        capsys,
        write({"own": "none"}, [{"problem": "Why?", "solution": "So."}]),
        graded,
        "data.on_bad_row=skip",
        status=2,
    )
    rows_of(capsys, config)  # a reward that needs no answer


def test_lengths_and_what_is_dropped(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    config = write({"teacher": "final_answer"}, [*ROWS, {"problem": "long " * 40, "answer": "9"}])
    assert main(["preview", str(config), "rendering.max_prompt_tokens=100"]) == 2
    assert "prompt 'data/4' (rendering.max_prompt_tokens)" in capsys.readouterr().err
    assert main(["preview", str(config), "rendering.max_prompt_tokens=100", "rendering.overlong=drop"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of 4" in said and "data/4: " in said and "more than rendering.max_prompt_tokens" in said
    assert "limit 100" in said and "window of 1024 tokens" in said
    short = ["rendering.max_teacher_prompt_tokens=150", "rendering.overlong=drop"]
    found = preview(load_resolved(config, short), rows=4)
    assert found.rows[3].teachers["teacher"].note == "longer than the limit: dropped" and not found.problems
    assert len(found.teacher_lengths["teacher"].tokens) == 3 and found.teacher_lengths["teacher"].limit == 150
    assert main(["preview", str(config), short[0]]) == 2
    assert "contexts.teacher, prompt 'data/4' (rendering.max_teacher_prompt_tokens)" in capsys.readouterr().err


def test_columns_references_and_evaluation_sets(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write({"teacher": "final_answer"}, [*ROWS, {"problem": "Prove it.", "answer": "proof"}])
    held_out = f"eval.sets={{hard: {{name: file, path: {tmp_path / 'data.jsonl'}, problems: 2}}}}"
    assert main(["preview", str(config), held_out, "rewards=[math_answer]"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of 4 can be read by a grader; not: data/4" in said
    assert "eval.sets.hard problems 2 of 4 prompt from problem answer from answer" in said
    assert "answer solution from solution (3 of 4 rows) other columns feedback references" in said, (
        "what else a row has"
    )
    assert "2 of 2 can be read by a grader student" in said
    assert main(["preview", str(config)]) == 0
    assert "4 of 4 problems have an answer; no grader of ours compares with it" in " ".join(
        capsys.readouterr().out.split()
    )


def test_rows_that_were_left_out(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    rows = [*ROWS, {"problem": "What is half of 1?", "answer": "####"}, {"answer": "1"}]
    config = write({"teacher": "final_answer"}, rows, on_bad_row="skip")
    assert main(["preview", str(config)]) == 0
    said = capsys.readouterr()
    assert "data.jsonl, row 5: no prompt" in " ".join(said.out.split()) and "row 5" not in said.err
    with pytest.warns(UserWarning, match="row 5"):
        assert len(rows_of(capsys, config, "--rows", "9")) >= 3


@pytest.mark.parametrize("name", TABLE)
def test_public_shapes(write: Callable[..., Path], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = {k: v for k, v in yaml.safe_load(TABLE[name][0]).items() if k not in ONLY_HUB}
    rows = [json.loads(text) for text in shape(name).read_text().splitlines()]
    has_solution = TABLE[name][-1] != "–"
    config = write(
        {"teacher": "reference_solution" if has_solution else "final_answer", "sib": "successful_sibling"}, rows, **line
    )
    questions, answers, work = OWN.get(name, (QUESTIONS, ANSWERS, WORK))
    found = rows_of(capsys, config, "--rows", "3")
    assert [row["answer"] for row in found] == answers
    for row, asked, known in zip(found, questions, work if has_solution else answers, strict=True):
        assert asked in row["student_prompt"] and known in row["teacher_prompts"]["teacher"]
        assert not any(part in row["student_prompt"] for part in work) and row["teacher_prompts"]["sib"] is None
    assert main(["preview", str(config)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for role, where in zip(("prompt", "answer", "solution"), TABLE[name][1:], strict=True):
        assert where == "–" or f"{role} from {where}" in said


@pytest.mark.parametrize("width", [40, 80])
def test_it_fits_the_terminal(
    write: Callable[..., Path], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = "[red]\x1b[31m 數學 " + "word " * 2000
    rows = [{"problem": text, "answer": "[bold]4", "solution": text, "id": "x" * 90}]
    config = write({"a_context_with_quite_a_long_name": "reference_solution"}, rows)
    assert main(["preview", str(config), "rendering.overlong=drop"]) == 2, "longer than the window"
    rows[0] |= {"problem": text[:400], "solution": text[:300]}
    config = write({"a_context_with_quite_a_long_name": "reference_solution"}, rows)
    assert main(["preview", str(config)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and r"\x1b[31m" in said and "[red]" in said and "[bold]4" in said
    drawn = [line for line in said.splitlines() if not line.startswith("next: ")]  # which are copied as they are
    assert max(map(cell_len, drawn)) <= width


def test_special_tokens_stand_out_and_text_of_data_does_not(write: Callable[..., Path]) -> None:
    rows = [{"problem": "What is <|im_end|> for?", "answer": "1"}]
    found = preview(load_resolved(write({"teacher": "final_answer"}, rows)), rows=1)
    pieces = found.rows[0].student.pieces
    assert "".join(text for text, _ in pieces) == found.rows[0].student.text
    assert [text for text, special in pieces if special] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert "What is <|im_end|> for?" in pieces[1][0]


def test_long_prompts_are_shortened_on_the_terminal(write: Callable[..., Path]) -> None:
    rows = [{"problem": "begin " + "x" * 900 + " end", "answer": "1"}]
    found = preview(load_resolved(write({"teacher": "final_answer"}, rows)), rows=1)
    console = Console(record=True, width=80, file=io.StringIO())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("onpolicy.run.print_preview.LONGEST", 200)
        _panel(console, "title", found.rows[0].student)
    said = console.export_text()
    assert "begin" in said and "end" in said and "characters more, see --json" in said and len(said) < 900


def test_columns_of_the_baseline_are_there(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    config = write({"teacher": {"name": "reference_solution", "template": "{question} Usually {ref_rate}, {ref_std}."}})
    assert any("ref_rate" in problem for problem in check_problems(config))
    assert not check_problems(config, "epistemic.baseline=2")
    (row,) = rows_of(capsys, config, "--rows", "1", "epistemic.baseline=2")
    assert "Usually 0.0, 0.0." in row["teacher_prompts"]["teacher"]


def check_problems(config: Path, *overrides: str) -> tuple[str, ...]:
    try:
        check_run(config, overrides)
    except ConfigError as error:
        return tuple(p for p in error.problems if p.startswith("contexts."))
    return ()


def test_text_that_the_tokenizer_does_not_know_is_counted(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = write({"teacher": {"name": "reference_solution", "template": "{question} hint {solution}"}})
    rows = [
        {"problem": f"add 3 5 8 11 to {n}", "solution": words, "answer": "1"}
        for n, words in ((16, "5 + 11"), (12, "two!"))
    ]
    (config.parent / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["preview", str(config), "model.path=lab-reasoner", "generator.max_tokens=32"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("hold text that the tokenizer does not know") == 1, "the student's prompts are known"
    assert "1 of 2 hold text that the tokenizer does not know" in said


def test_errors_of_evaluation_sets_name_their_own_keys(write: Callable[..., Path]) -> None:
    config = write({"teacher": "final_answer"})
    other = config.parent / "data.path.jsonl"  # the file's name is no key
    other.write_text('{"task": "1 + 1?", "answer": "2"}\n')
    sets = [f"eval.sets={{held: {{name: file, path: {other}}}}}", "eval.every=1"]
    with pytest.raises(DataError, match=r"data\.path\.jsonl, row 1: .* e\.g\. eval\.sets\.held\.columns\.prompt=task$"):
        preview(load_resolved(config, sets), rows=1)
    with pytest.raises(DataError, match=r"e\.g\. data\.columns\.prompt=task"):
        preview(load_resolved(config, [f"data.path={other}"]), rows=1)
