"""What a row becomes.

1. A last turn of the assistant is an answer and no part of the question; 2. answers in worked solutions; 3. the value of the file is
kept beside its text; 4. values that are no text; 5. messages in parts, with tools, of ShareGPT; 6. columns by other names; 7. free ids;
8. what was read and dropped is told.
"""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from onpolicy.data import DataError, load_prompts
from onpolicy.data.rows import to_prompt, unique_ids
from onpolicy.data.subset import coverage
from onpolicy.types import Prompt

USER = {"role": "user", "content": "5 + 9?"}
TURN = {"role": "assistant", "content": "5 and 9 make $\\boxed{14}$."}


def read(row: dict[str, Any], **options: Any) -> Prompt:
    return to_prompt(row, default_id="r", **options)


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_the_last_turn_of_the_assistant_is_the_answer(column: str) -> None:
    prompt = read({column: [USER, TURN]})
    assert prompt.messages == (USER,) and prompt.fields["prompt"] == [USER]
    assert (
        prompt.fields["solution"] == prompt.fields["completion"] == TURN["content"] and prompt.fields["answer"] == "14"
    )


def test_a_solution_of_its_own_is_kept_beside_the_last_turn() -> None:
    prompt = read({"messages": [USER, TURN], "solution": "add", "answer": "fourteen", "completion": "mine"})
    assert [prompt.fields[n] for n in ("solution", "answer", "completion")] == ["add", "fourteen", "mine"]


def test_earlier_turns_are_history_and_stay() -> None:
    history = [USER, TURN, {"role": "user", "content": "and 1 more?"}]
    prompt = read({"messages": [*history, {"role": "assistant", "content": "15"}]})
    assert list(prompt.messages) == history and prompt.fields["solution"] == "15"
    several = read({"messages": [USER, TURN, {"role": "assistant", "content": "Yes."}]})
    assert several.messages == (USER,) and several.fields["completion"] == f"{TURN['content']}\n\nYes."


def test_a_turn_to_be_continued_says_so() -> None:
    begun = {"role": "assistant", "content": "5 and", "prefix": True}
    prompt = read({"messages": [USER, begun]})
    assert list(prompt.messages) == [USER, begun] and "completion" not in prompt.fields


def test_answers_without_a_question_are_refused() -> None:
    with pytest.raises(ValueError, match="the assistant's turns alone, expected a question"):
        read({"messages": [TURN]})


def test_a_tool_call_at_the_end_is_taken_out_and_is_no_solution() -> None:
    prompt = read(
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]}
    )
    assert prompt.messages == (USER,) and "solution" not in prompt.fields


@pytest.mark.parametrize(
    ("row", "answer", "solution"),
    [
        ({"answer": "3 * 4 = 12\nso 12 - 2 = 10.\n#### 10"}, "10", "3 * 4 = 12\nso 12 - 2 = 10."),
        ({"answer": "#### 10  "}, "10", None),
        ({"answer": "x\n#### 1,200", "solution": "own"}, "1,200", "own"),
        ({"answer": "#### Step 1\nadd\n#### Step 2\nit is 10"}, "#### Step 1\nadd\n#### Step 2\nit is 10", None),
        ({"answer": "work\n##### 10"}, "work\n##### 10", None),
        ({"answer": "Adding gives $\\boxed{\\frac{1}{2}}$."}, "\\frac{1}{2}", "Adding gives $\\boxed{\\frac{1}{2}}$."),
        ({"answer": "$\\boxed{7}$"}, "$\\boxed{7}$", None),
        ({"solution": "first \\boxed{3}, then \\boxed{4}. Fine."}, "4", "first \\boxed{3}, then \\boxed{4}. Fine."),
        ({"solution": "so\n#### 5"}, "5", "so\n#### 5"),
        ({"solution": "<think>\\boxed{1}?</think> \\boxed{2}"}, "2", "<think>\\boxed{1}?</think> \\boxed{2}"),
        ({"solution": "no answer here"}, None, "no answer here"),
        ({"answer": "[3]"}, "[3]", None),
        ({"answer": '["27"]'}, "27", None),
        ({"answer": '["2", "3"]'}, '["2", "3"]', None),
    ],
)
def test_where_the_answer_stands(row: dict[str, Any], answer: str | None, solution: str | None) -> None:
    prompt = read({"problem": "p", **row})
    assert (prompt.fields.get("answer"), prompt.fields.get("solution")) == (answer, solution)


def test_where_the_answer_stands_can_be_said(tmp_path: Path) -> None:
    row = {"problem": "p", "answer": "wrong column", "solution": "\\boxed{3}\n#### 4"}
    path = jsonl(tmp_path / "a.jsonl", row)
    assert load_prompts(path, answer_from="boxed")[0].fields["answer"] == "3"
    assert load_prompts(path, answer_from="hash")[0].fields["answer"] == "4"
    assert load_prompts(path)[0].fields["answer"] == "wrong column"
    jsonl(path, row, {"problem": "q", "answer": "5"})
    with pytest.raises(DataError, match=r"row 2: data\.answer_from=boxed: no such answer stands in 'answer'"):
        load_prompts(path, answer_from="boxed")


@pytest.mark.parametrize(
    "truth",
    [{"target": ["Rhine", "the Rhine"]}, ["42", "forty-two"], 42, 42.0, True, Decimal("0.10"), np.array(["a", "b"])],
)
def test_the_value_of_the_file_is_kept_beside_its_text(truth: Any) -> None:
    for row in ({"reward_model": {"ground_truth": truth}}, {"ground_truth": truth}, {"answer": truth}):
        prompt = read({"problem": "p", **row})
        assert prompt.ground_truth is truth and isinstance(prompt.fields["answer"], str)
    assert prompt.raw_columns["answer"] is truth


def test_columns_that_are_no_text_are_kept_for_rewards() -> None:
    prompt = read({"prompt": "p", "answer": 42, "solution": {"final": "42"}})
    assert prompt.raw_columns == {"answer": 42, "solution": {"final": "42"}}
    assert prompt.fields["solution"] == '{"final": "42"}'
    assert read({"prompt": "p", "answer": "42", "solution": "add"}).raw_columns == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5e-05, "0.00005"),
        (1e20, "100000000000000000000"),
        (42.0, "42"),
        (-0.5, "-0.5"),
        (2.5e-7, "0.00000025"),
        (Decimal("12.50"), "12.50"),
        (Decimal("1E+3"), "1000"),
        (b"42", "42"),
        (datetime.date(2026, 11, 30), "2026-11-30"),
        ([Decimal("0.10"), Decimal("0.20")], "[0.10, 0.20]"),
        (
            {"on": datetime.date(2026, 1, 2), "to": [1e-7, None, True]},
            '{"on": "2026-01-02", "to": [0.0000001, null, true]}',
        ),
        ([["a"]], '[["a"]]'),
        (["ü"], "ü"),
        (np.float64(3.0), "3"),
        (np.int64(7), "7"),
    ],
)
def test_values_are_written_exactly(value: Any, text: str) -> None:
    assert read({"problem": "p", "answer": value}).fields["answer"] == text


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        "",
        "  \n",
        b"\xff\xfe",
        Decimal("NaN"),
        [1.0, math.nan],
        {"a": math.inf},
        object(),
    ],
)
def test_no_text_and_no_number_is_a_bad_row(value: Any) -> None:
    for column in ("answer", "label"):
        with pytest.raises(ValueError, match=f"column '{column}' (is empty|holds)"):
            read({"problem": "p", column: value})


def test_bad_values_of_parquet_are_left_out_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"problem": ["a", "b", "c"], "answer": [1.0, math.nan, 2.5]}), path)
    with pytest.raises(DataError, match=r"row 2: column 'answer' holds nan, expected text or a finite number"):
        load_prompts(path)
    with pytest.warns(UserWarning, match="left out 1 of 3"):
        prompts = load_prompts(path, on_bad_row="skip")
    assert [p.fields["answer"] for p in prompts] == ["1", "2.5"] and len(prompts.reading.dropped) == 1
    rows = [
        {"problem": "a", "answer": [Decimal("1.5")], "seen": {"on": datetime.date(2026, 1, 2)}},
        {"problem": "b", "answer": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [p.fields.get("answer") for p in load_prompts(path)] == ["1.5", None]


def test_an_empty_answer_beside_a_full_one_is_passed_over() -> None:
    assert read({"problem": "p", "answer": "", "final_answer": "4"}).fields["answer"] == "4"
    assert read({"problem": "p", "answer": " ", "solution": "\\boxed{4}"}).fields["answer"] == "4"
    assert read({"problem": "p", "answer": None, "solution": " "}).fields.get("solution") is None


def test_messages_in_parts_are_read_and_other_parts_named() -> None:
    parts = [{"type": "text", "text": "5 + "}, {"type": "text", "text": "9?"}]
    assert read({"messages": [{"role": "user", "content": parts}]}).messages == (USER,)
    with pytest.raises(ValueError, match="a part of type 'image_url', expected text alone"):
        read({"messages": [{"role": "user", "content": [*parts, {"type": "image_url", "image_url": {"url": "x"}}]}]})


def test_sharegpt_conversations() -> None:
    turns = [{"from": "human", "value": "5 + 9?"}, {"from": "gpt", "value": "14"}]
    prompt = read({"conversations": turns, "system": "Add."})
    assert prompt.messages == ({"role": "system", "content": "Add."}, USER) and prompt.fields["solution"] == "14"
    assert read({"conversations": [USER, TURN]}).messages == (USER,)
    with pytest.raises(ValueError, match="a turn of 'observation', expected human, gpt or system"):
        read({"conversations": [{"from": "observation", "value": "x"}]})


def test_tools_and_their_calls_are_handed_on() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 5}}}]
    history = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "name": "add", "content": "14"},
    ]
    for offered in (tools, json.dumps(tools)):
        prompt = read({"messages": history, "tools": offered})
        assert prompt.messages[0] == {**USER, "tools": tools} and list(prompt.messages[1:]) == history[1:]
    with pytest.raises(ValueError, match="column 'tools' holds 'add', expected a list of functions"):
        read({"messages": history, "tools": "add"})
    with pytest.raises(ValueError, match="a 'function_call', expected 'tool_calls'"):
        read({"messages": [USER, {"role": "assistant", "content": "x", "function_call": {"name": "add"}}]})


def test_fields_that_arrow_adds_to_tools_are_left_out(tmp_path: Path) -> None:
    def row(name: str) -> dict[str, Any]:
        calls = [{"function": {"name": name, "arguments": {name: 1}}}]
        return {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "1"},
            ],
            "tools": [{"function": {"name": name, "parameters": {"properties": {name: {"type": "integer"}}}}}],
        }

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row("one"), row("two")]), path)
    for name, prompt in zip(("one", "two"), load_prompts(path), strict=True):
        assert prompt.messages[0]["tools"] == row(name)["tools"]
        assert prompt.messages[1]["tool_calls"] == row(name)["messages"][1]["tool_calls"]


def test_named_columns_may_hold_json_text(tmp_path: Path) -> None:
    row = {"chat": json.dumps([USER, TURN]), "meta": json.dumps({"truth": ["14"]}), "answer": "other"}
    (prompt,) = load_prompts(jsonl(tmp_path / "a.jsonl", row), columns={"prompt": "chat", "answer": "meta.truth"})
    assert prompt.messages == (USER,) and prompt.fields["answer"] == "14" and prompt.ground_truth == ["14"]


def test_columns_by_other_names(tmp_path: Path) -> None:
    rows = [{"Problem": "5 + 9?", "meta": {"answer": 14}, "Solution": "add", "messages": "noise", "answer": "other"}]
    columns = {"prompt": "Problem", "answer": "meta.answer", "solution": "Solution"}
    (prompt,) = load_prompts(jsonl(tmp_path / "a.jsonl", *rows), columns=columns, prompt_template="P: {problem}")
    assert prompt.messages == ({"role": "user", "content": "P: 5 + 9?"},) and prompt.fields["problem"] == "5 + 9?"
    assert (prompt.fields["answer"], prompt.fields["solution"], prompt.ground_truth) == ("14", "add", 14)
    assert prompt.raw_columns == {"answer": 14}, "renamed columns reach rewards under their new name"
    with pytest.raises(DataError, match=r"row 1: data\.columns\.answer: there is no column 'Answer'; it has 'Problem'"):
        load_prompts(tmp_path / "a.jsonl", columns={**columns, "answer": "Answer"})


def test_plain_text_comes_first_for_a_template(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"messages": [USER, TURN], "problem": "5 + 9?"})
    assert load_prompts(path, prompt_template="{problem} Box it.")[0].messages[0]["content"] == "5 + 9? Box it."
    jsonl(path, {"messages": [USER, TURN]})
    with pytest.raises(DataError, match=r"data\.prompt_template: has no effect, every row"):
        load_prompts(path, prompt_template="{problem} Box it.")
    worded = [{"role": "user", "content": "Q: 5 + 9?\nBox it."}]
    assert (
        list(load_prompts(jsonl(path, {"prompt": worded}), prompt_template="Q: {problem}\nBox it.")[0].messages)
        == worded
    )


def test_a_new_id_is_one_that_no_row_has() -> None:
    prompts = [Prompt(id=name, messages=()) for name in ("a", "a", "a#2", "a", "a#2")]
    found = unique_ids(prompts)
    assert [p.id for p in found] == ["a", "a#3", "a#2", "a#4", "a#2#2"]
    assert [p.fields["problem_id"] for p in found] == ["a", "a", "a#2", "a", "a#2"]
    repeated = coverage([Prompt(id=name, messages=()) for name in ("a", "a#2")], problems=None, repeats=3)
    assert len({p.id for p in repeated}) == 6 and [p.fields["problem_id"] for p in repeated] == ["a", "a#2"] * 3


def test_an_id_that_is_missing_among_numbers_is_made() -> None:
    assert [read({"problem": "p", "id": value}).id for value in (7.0, math.nan, "x", "")] == ["7", "r", "x", "r"]


def test_what_was_read_and_dropped_is_told(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": "w\n#### 1"}, {"question": "b", "answer": "2"}, {"question": " "}]
    with pytest.warns(UserWarning):
        reading = load_prompts(jsonl(tmp_path / "a.jsonl", *rows), on_bad_row="skip").reading
    assert (
        reading.columns["prompt"] == "question" and reading.columns["solution"] == "answer, before #### (1 of 2 rows)"
    )
    assert reading.columns["answer"] == "answer, after #### (1 of 2 rows); answer (1 of 2 rows)"
    assert reading.dropped == (f"{tmp_path / 'a.jsonl'}, row 3: column 'question' is empty, expected a problem",)


def test_what_pandas_writes_for_nested_columns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,reward_model\n\"[{'role': 'user', 'content': \"\"What's 5 + 9?\"\"}]\",\"{'ground_truth': '14'}\"\n"
    )
    (prompt,) = load_prompts(path)
    assert prompt.messages == ({"role": "user", "content": "What's 5 + 9?"},) and prompt.fields["answer"] == "14"
    with pytest.raises(ValueError, match="'prompt' holds broken Python text"):
        read({"prompt": "[{'role': 'user'} {'role': 'assistant'}]"})  # what NumPy writes has no commas
    assert read({"prompt": "{'a': 1}['a'] is what?"}).messages[0]["content"] == "{'a': 1}['a'] is what?"


def test_a_system_message_may_be_empty() -> None:
    prompt = read({"messages": [{"role": "system", "content": ""}, USER, TURN]})
    assert prompt.messages == ({"role": "system", "content": ""}, USER) and prompt.fields["answer"] == "14"


def test_a_completion_in_messages_is_its_text() -> None:
    prompt = read({"prompt": [USER], "completion": [TURN]}, columns={"solution": "completion"})
    assert prompt.fields["solution"] == TURN["content"] and prompt.fields["answer"] == "14"
