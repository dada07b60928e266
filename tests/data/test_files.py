"""Reading problems.

1. verl's parquet with structs and with JSON strings, TRL's and OPSD's columns, in parquet, JSONL and JSON; 2. a bad row is
named by file and row, refused or skipped; 3. missing, empty and corrupt files; 4. ids are unique; 5. gym problems are
the same for the same seed and templates do not mix; 6. hub datasets from a local folder.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from onpolicy.data import DataError, champ, file, gym, hub, load_prompts, read_prompts
from onpolicy.data.files import load_first_prompts

VERL = {
    "data_source": "math",
    "prompt": [{"role": "user", "content": "2 + 2?"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "4", "style": "rule"},
    "extra_info": {"index": 7, "solution": "add them"},
}


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("as_json", [False, True], ids=["structs", "json strings"])
def test_verl_parquet(tmp_path: Path, as_json: bool) -> None:
    row = {k: json.dumps(v) if as_json and not isinstance(v, str) else v for k, v in VERL.items()}
    (prompt,) = load_prompts(parquet(tmp_path / "a.parquet", [row]))
    assert prompt.messages == ({"role": "user", "content": "2 + 2?"},)
    assert prompt.fields["answer"] == "4" and prompt.fields["solution"] == "add them" and prompt.id == "7"
    assert prompt.fields["data_source"] == "math" and prompt.fields["extra_info"]["index"] == 7


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "2 + 2?", "answer": 4, "solution": "add"},
        {"prompt": "2 + 2?", "ground_truth": "4", "privileged_context": "add"},
        {"messages": [{"role": "user", "content": "2 + 2?"}], "label": "4", "reference_solution": "add"},
        {"question": "2 + 2?", "final_answer": "4", "solution": "add"},
    ],
)
def test_the_usual_columns(tmp_path: Path, row: dict[str, Any]) -> None:
    (prompt,) = load_prompts(jsonl(tmp_path / "a.jsonl", [row]))
    assert prompt.messages[-1]["content"] == "2 + 2?"
    assert prompt.fields["answer"] == "4" and prompt.fields["solution"] == "add" and prompt.id == "a/1"


def test_a_template_keeps_other_braces(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"problem": "solve {x}^{2}"}])
    (prompt,) = load_prompts(file, prompt_template="{problem} in \\boxed{}")
    assert prompt.messages[0]["content"] == "solve {x}^{2} in \\boxed{}"
    assert prompt.fields["prompt"] == "solve {x}^{2}"


def test_text_that_looks_like_json_stays_text(tmp_path: Path) -> None:
    rows = [{"prompt": "[1, 2] + [3]?"}, {"prompt": "[1, 2]"}, {"prompt": "{a, b} is a set"}]
    assert [p.messages[0]["content"] for p in load_prompts(jsonl(tmp_path / "a.jsonl", rows))] == [
        r["prompt"] for r in rows
    ]


def test_bad_rows_are_named_and_refused_or_skipped(tmp_path: Path) -> None:
    rows = [
        {"problem": "fine"},
        "{not json",
        {"problem": "  "},
        {"no": "prompt"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"prompt": 5},
        "[1]",
    ]
    file = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_prompts(file)
    text = str(caught.value)
    assert (
        "7 of 8 rows" in text and f"{file}, row 2: is not JSON" in text and "row 3: column 'problem' is empty" in text
    )
    assert "row 4: no prompt" in text and "'no'" in text and "data.on_bad_row=skip" in text
    with pytest.warns(UserWarning, match="left out 7 of 8"):
        assert len(load_prompts(file, on_bad_row="skip")) == 1
    prompts, bad = read_prompts(file)
    assert [b.row for b in bad] == [2, 3, 4, 5, 6, 7, 8] and len(prompts) == 1


def test_a_corrupt_nested_column_names_its_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": json.dumps(VERL["prompt"])},
        {"prompt": '[{"role": "user", "content":'},
        {"prompt": '[{"role": "user"}]'},
    ]
    with pytest.raises(DataError) as caught:
        load_prompts(parquet(tmp_path / "a.parquet", rows))
    assert "row 2: column 'prompt' holds broken JSON" in str(caught.value)
    assert "row 3: column 'prompt' holds the message" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 this is not parquet")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "table.xlsx").write_text("a,b")
    (tmp_path / "folder").mkdir()
    for name, words in (
        ("missing.jsonl", "does not exist"),
        ("broken.parquet", "not a readable parquet"),
        ("empty.jsonl", "holds no problems"),
        ("object.json", "expected a list"),
        ("table.xlsx", "'.xlsx', expected one of"),
        ("folder", "holds no .parquet"),
    ):
        with pytest.raises(DataError, match=words):
            load_prompts(tmp_path / name)


def test_a_folder_is_read_in_order_and_ids_are_unique(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", [{"problem": "three", "id": "x"}])
    jsonl(tmp_path / "a.jsonl", [{"problem": "one", "id": "x"}, {"problem": "two"}])
    prompts = load_prompts(tmp_path)
    assert [p.messages[0]["content"] for p in prompts] == ["one", "two", "three"]
    assert [p.id for p in prompts] == ["x", "a/2", "x#2"] and prompts[2].fields["problem_id"] == "x"


def test_gym_problems_are_deterministic_and_carry_what_the_verifier_needs() -> None:
    one, two = gym(size=4, seed=1), gym(size=4, seed=1)
    assert one == two and gym(size=4, seed=2) != one
    assert all("####" in p.fields["solution"] and p.fields["answer"] for p in one)
    assert one[0].messages[0]["content"].endswith("\\boxed{}.")


def test_gym_templates_do_not_mix() -> None:
    near, far = gym(size=60, templates=[0, 49]), gym(size=60, templates=[50, 84])
    assert not {p.fields["template"] for p in near} & {p.fields["template"] for p in far}
    assert len({p.fields["template"] for p in near}) == 50
    with pytest.raises(DataError, match=r"data\.templates"):
        gym(templates=[0, 85])
    with pytest.raises(DataError, match="only the task gsm_symbolic"):
        gym(task="chain_sum", templates=[0, 1], size=2)


def test_gym_refuses_unknown_tasks_and_options() -> None:
    with pytest.raises(DataError, match="nonsense"):
        gym(task="nonsense", size=1)
    with pytest.raises(DataError, match="chain_sum"):
        gym(task="chain_sum", size=1, config={"no_such": 1})


def test_hub_reads_a_local_folder(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [{"problem": "2 + 2?", "answer": "4"}])
    (prompt,) = hub(path=str(tmp_path))
    assert prompt.fields["answer"] == "4"
    with pytest.raises(DataError, match=r"data\.path"):
        hub(path=str(tmp_path), split="nope")


def test_a_file_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"problem": "2 + 2?", "answer": "4"}])
    with pytest.raises(DataError, match=r"is a file, expected .* data\.name=file"):
        hub(path=str(path))
    with pytest.raises(DataError, match=r"there is none here, expected .* data\.name=file"):
        hub(path="nowhere.csv")


def test_files_that_others_put_into_a_folder_are_left_alone(tmp_path: Path) -> None:
    """Those of the system, and what ``datasets`` computed from the rows."""
    jsonl(tmp_path / "a.jsonl", [{"problem": "2 + 2?", "answer": "4"}])
    for name in ("._a.jsonl", ".a.json", "cache-2f42.arrow"):
        (tmp_path / name).write_bytes(b"\x00\x05")
    assert [p.id for p in load_prompts(tmp_path)] == ["a/1"]


def test_champ_has_help_of_every_grade() -> None:
    problems = champ()
    assert len(problems) == 79 and len({p.id for p in problems}) == 79 and len(champ(whole_numbers=False)) == 270
    assert all(int(p.fields["answer"]) is not None and p.fields["solution"] for p in problems)
    first = problems[0]
    assert first.fields["answer"] == "239" and first.fields["hints"].count("\n") == 2 and "@@" not in str(first)
    assert {p.fields["category"] for p in champ(category="Sequence")} == {"Sequence"}
    with pytest.raises(
        DataError, match=r"data\.category: 'Algebra'.*Combinatorics, Inequality, Number-Theory, Polynomial, Sequence"
    ):
        champ(category="Algebra")


def test_a_system_prompt_stands_before_conversations_without_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "b"}]
    path.write_text("\n".join(json.dumps(row) for row in ({"problem": "a"}, {"messages": own})))
    first, second = file(path=str(path), prompt_template="P: {problem}", system_prompt="Use tags: {problem}")
    assert first.messages == ({"role": "system", "content": "Use tags: {problem}"}, {"role": "user", "content": "P: a"})
    assert list(second.messages) == own and file(path=str(path))[0].messages == ({"role": "user", "content": "a"},)


ROW, OTHER = {"problem": "1 + 1?", "answer": "2"}, {"problem": "1 + 2?", "answer": "3"}


def test_forms_of_files(tmp_path: Path) -> None:
    lines = f"\n{json.dumps(ROW)}\n \n{json.dumps(OTHER)}\r\n\n".encode()
    (tmp_path / "a.JSONL").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.json").write_bytes(lines)
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps([ROW, OTHER]).encode()))
    (tmp_path / "e.csv").write_text('\ufeffproblem,answer,solution\n"1 + 1?",2,\n"1 + 2?",3,"a\nb"\n', encoding="utf-8")
    with pyarrow.OSFile(str(tmp_path / "f.arrow"), "wb") as sink:
        table = pyarrow.Table.from_pylist([ROW, OTHER])
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    for name in sorted(p.name for p in tmp_path.iterdir()):
        prompts = load_prompts(tmp_path / name)
        assert [(p.messages[0]["content"], p.fields["answer"]) for p in prompts] == [
            ("1 + 1?", "2"),
            ("1 + 2?", "3"),
        ], name
    assert [p.id for p in load_prompts(tmp_path / "a.JSONL")] == ["a/2", "a/4"], "as an editor counts lines"
    assert [p.fields.get("solution") for p in load_prompts(tmp_path / "e.csv")] == [None, "a\nb"]
    assert len(load_prompts(tmp_path)) == 12


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"task;gold (a, b)\n1 + 1?;2\n1,5 + 1?;2,5\n"),
        ("a.csv", b'task\tgold (a, b)\n1 + 1?\t2\n"1,5 + 1?"\t2,5\n'),
        ("a.tsv", b"task\tgold (a, b)\r\n1 + 1?\t2\r\n1,5 + 1?\t2,5\r\n"),
        ("a.csv", 'task,"gold (a, b)"\n1 + 1?,2\n"1,5 + 1?","2,5"\n'.encode("utf-16")),
        ("a.csv", b'\n task, "gold (a, b)"\n1 + 1?, 2\n"1,5 + 1?", "2,5"\n\n'),
        ("a.csv", b',task,"gold (a, b)",\n0,1 + 1?,2,\n1,"1,5 + 1?","2,5",\n'),  # as pandas writes its index
    ],
    ids=["semicolons", "tabs", "tsv", "UTF-16", "spaces", "columns without a name"],
)
def test_tables_as_others_write_them(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    prompts = load_prompts(tmp_path / name, columns={"prompt": "task", "answer": "gold (a, b)"})
    read = [(p.messages[0]["content"], p.fields["answer"]) for p in prompts]
    assert read == [("1 + 1?", "2"), ("1,5 + 1?", "2,5")] and "" not in prompts[0].fields


def test_what_is_wrong_with_all_rows_is_said_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"Frage": f"{i} + 1?"} for i in range(9)])
    text = r"9 of 9 rows cannot be read:\n  .*a.jsonl, rows 1, 2, 3, 4, 5 and 4 more: no prompt: .* data.columns.prompt=Frage$"
    with pytest.raises(DataError, match=text):
        load_prompts(path)
    with pytest.raises(DataError, match=text):
        load_prompts(path, on_bad_row="skip")


def test_other_json_files_in_a_folder_are_left_out_and_told(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", [ROW])
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": {}, "splits": {}}))
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": []}, indent=2))
    prompts = load_prompts(tmp_path)
    assert len(prompts) == 1 and len(prompts.reading.dropped) == 2
    assert "dataset_info.json' holds one object with 'features', 'splits'" in prompts.reading.dropped[0]
    with pytest.raises(
        DataError, match="holds one object with '_data_files', expected a list of rows, or one row on each line"
    ):
        load_prompts(tmp_path / "state.json")


def test_broken_files_of_these_forms_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "b.csv").write_text("problem,answer\n1 + 1?,2,3\n")
    (tmp_path / "c.csv").write_bytes(b"problem\n\xff\n")
    (tmp_path / "d.json").write_text("not json\n")
    (tmp_path / "deep" / "train").mkdir(parents=True)
    jsonl(tmp_path / "deep" / "train" / "x.jsonl", [ROW])
    for name, words in (
        ("a.jsonl.gz", "not a readable gzip file"),
        ("b.csv", "row 2: has more values than the header has columns"),
        ("c.csv", "line 2 is not UTF-8"),
        ("d.json", "is not JSON"),
        ("deep", "name one of its folders: train"),
    ):
        with pytest.raises(DataError, match=words):
            load_prompts(tmp_path / name)


def test_as_many_rows_as_are_read_at_first_are_the_whole_file(tmp_path: Path) -> None:
    for rows, more in ((3, False), (4, True)):
        path = tmp_path / f"{rows}.jsonl"
        path.write_text('{"prompt": "1 + 1?", "answer": "2"}\n' * rows)
        found = load_first_prompts(path, 3)
        assert (len(found), found.reading.more) == (3, more)
