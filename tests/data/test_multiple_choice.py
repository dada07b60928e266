"""Rows of science questions: what becomes the prompt, what does not, and what is refused. The rows are of our own wording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onpolicy.data import file
from onpolicy.data.rows import RowFormat, read_row, to_prompt
from onpolicy.rewards.choices import choice_answer

SHAPES = Path(__file__).parent / "shapes"
CHOICE: dict[str, Any] = {
    "prompt": {"default": "Choose one."},
    "question": "Which metal is liquid at room temperature?",
    "choices": {"text": ["iron", "mercury"], "label": ["A", "B"]},
    "answerKey": "B",
    "answer": "",
}
FREE = CHOICE | {"choices": {"text": [], "label": []}, "answerKey": "", "answer": "Hg", "question": "Its symbol?"}
GPQA: dict[str, Any] = json.loads((SHAPES / "gpqa.jsonl").read_text().splitlines()[0])


def asked(row: dict[str, Any], **more: Any) -> str:
    return to_prompt(row, default_id="x", **more).messages[0]["content"]


def test_sciknowevals_own_wording_stays_out_and_a_template_goes_around_the_whole() -> None:
    assert asked(CHOICE) == "Which metal is liquid at room temperature?\n\nA. iron\nB. mercury"
    assert asked(CHOICE, prompt_template="{problem}\n\nReply with a letter.").endswith(
        "\nB. mercury\n\nReply with a letter."
    )


def test_options_in_csv_files_are_json() -> None:
    assert asked(CHOICE | {"choices": json.dumps(CHOICE["choices"])}) == asked(CHOICE)


def test_a_free_answer() -> None:
    prompt, where = read_row(FREE, "x", RowFormat())
    assert prompt.messages[0]["content"] == "Its symbol?" and prompt.fields["answer"] == "Hg"
    assert where == {"prompt": "question", "answer": "answer"} and "options" not in prompt.fields


def test_gpqas_answers_are_in_an_order_that_the_question_alone_decides() -> None:
    prompt = to_prompt(GPQA, default_id="x")
    other = GPQA | {"Record ID": "other", "Explanation": "other"}
    assert asked(other) == asked(GPQA)
    letters = set()
    for number in range(40):
        moved = to_prompt(GPQA | {"Question": f"Question {number}"}, default_id="x")
        letters.add(moved.fields["answer"])
        assert moved.fields["options"][moved.fields["answer"]] == "about 20 m/s"
    assert letters == set("ABCD")
    assert choice_answer("Answer: about 20 m/s", prompt.fields["answer"], prompt.fields["options"])
    assert prompt.id == "recA"


def test_nothing_else_of_a_row_is_in_the_prompt() -> None:
    marked = GPQA | {"Explanation": "LEAK", "Subdomain": "LEAK", "Pre-Revision Question": "LEAK"}
    assert "LEAK" not in asked(marked) and to_prompt(marked, default_id="x").fields["solution"] == "LEAK"
    assert "LEAK" not in asked(CHOICE | {"details": {"task": "LEAK"}, "answer": "LEAK", "domain": "LEAK"})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (CHOICE | {"answerKey": "C"}, "column 'answerKey': got 'C', expected one of the choices' labels, A, B"),
        (CHOICE | {"choices": {"text": ["iron"], "label": ["A", "B"]}}, "got 1 texts and 2 labels"),
        (CHOICE | {"choices": {"text": ["iron", "iron "], "label": ["A", "B"]}}, "two options have the same text"),
        (CHOICE | {"choices": {"text": ["iron", None], "label": ["A", "B"]}}, "got the option None, expected a text"),
        (GPQA | {"Incorrect Answer 2": None}, "column 'Incorrect Answer 2': got None, expected a text"),
        (GPQA | {"Incorrect Answer 2": "about 20 m/s"}, "two options have the same text"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        to_prompt(row, default_id="x")


def test_a_named_prompt_column_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GPQA) + "\n")
    (prompt,) = file(path=str(tmp_path / "rows.jsonl"), columns={"prompt": "Question", "answer": "Correct Answer"})
    assert prompt.messages[0]["content"] == GPQA["Question"] and prompt.fields["answer"] == "about 20 m/s"
