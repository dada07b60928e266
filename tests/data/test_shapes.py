"""The table of public datasets in docs/data.md: its lines read rows of the same shape, as the table says.

The rows (``shapes/``) have the public columns and nesting, and a wording of their own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.data import ReadPrompts, file, hub
from onpolicy.types import Prompt

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SHAPES = Path(__file__).parent / "shapes"
ONLY_HUB = ("name", "path", "split", "subset")
ROW = re.compile(r"^\| ([^|]+) \| `(\{name: .*?\})` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", flags=re.MULTILINE)
TABLE = {row[0]: row[1:] for row in ROW.findall(PAGE.read_text())}

QUESTIONS = ("A tram carries 18 people.", "A fair die is rolled", "Which negative number")
ANSWERS = ["23", "\\frac{1}{3}", "-7"]
WORK = ("18 - 7 = 11 remain", "Two of the six faces", "Both 7 and -7")
OWN: dict[str, tuple[tuple[str, ...], list[str], tuple[str, ...]]] = {
    name: (
        ("A shelf holds 5 boxes", "A field of 40 rows", "At noon it is 4 degrees"),
        answers,
        ("The boxes hold 5*12=<<5*12=60>>60 pens.", "40 rows of 30 trees", "The night has"),
    )
    for name, answers in (("GSM8K", ["52", "1,200", "-5"]), ("GSM8K of verl", ["52", "1200", "-5"]))
}
OWN["AIME-2024"] = (
    ("How many whole numbers", "Find the sum", "How many diagonals"),
    ["33", "210", "14"],
    ("33 of them", "20 * 21 / 2", "7 * 4 / 2"),
)
OWN["Search-R1"] = (
    ("Reply between <answer>", "Reply between <answer>", "Reply between <answer>"),
    ['["Baltic Sea", "the Baltic"]', '["Beethoven", "Ludwig van Beethoven"]', "1989"],
    (),
)
OWN["SciKnowEval"] = (
    ("\nA. chloride\nB. sodium\n", "\nA. helium\nB. argon", "\nD. vinegar"),
    ["B", "B", "D"],
    (),
)
OWN["GPQA"] = (
    ("without air?\n\nA. ", "no charge?\n\nA. ", "most of the ATP?\n\nA. "),
    ["B", "C", "D"],
    ("Two seconds at 9.8", "The name of the neutron", "Respiration happens"),
)


def shape(name: str) -> Path:
    return SHAPES / (re.sub(r"\W+", "_", name.casefold()) + ".jsonl")


def read(name: str, **more: Any) -> ReadPrompts:
    """The shape of a dataset by its documented line, with the file in the hub's place."""
    line: dict[str, Any] = yaml.safe_load(TABLE[name][0])
    return file(path=str(shape(name)), **{k: v for k, v in line.items() if k not in ONLY_HUB}, **more)


def question(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"]


def test_each_dataset_of_the_table_has_a_shape() -> None:
    assert len(TABLE) >= 12 and sorted(map(shape, TABLE)) == sorted(SHAPES.iterdir())


@pytest.mark.parametrize("name", TABLE)
def test_the_documented_line_reads_the_shape(name: str) -> None:
    prompts = read(name)
    questions, answers, work = OWN.get(name, (QUESTIONS, ANSWERS, WORK))
    told = dict(zip(("prompt", "answer", "solution"), TABLE[name][1:], strict=True))
    assert prompts.reading.columns == {role: where for role, where in told.items() if where != "–"}
    assert prompts.reading.dropped == () and len(prompts) == len({p.id for p in prompts}) == 3
    assert all(p.messages[-1]["role"] == "user" for p in prompts)
    assert [part in question(p) for p, part in zip(prompts, questions, strict=True)] == [True] * 3
    assert [p.fields["answer"] for p in prompts] == answers
    if told["solution"] == "–":
        assert not any(p.fields.get("solution") for p in prompts)
    else:
        assert [part in p.fields["solution"] for p, part in zip(prompts, work, strict=True)] == [True] * 3
        assert not any(part in m["content"] for p, part in zip(prompts, work, strict=True) for m in p.messages)


def test_ground_truths_reach_the_rewards_of_their_authors() -> None:
    assert read("Search-R1")[0].ground_truth == {"target": ["Baltic Sea", "the Baltic"]}
    assert read("Skywork-OR1")[0].ground_truth == '["23"]' and read("AIME-2024")[0].ground_truth == 33


def test_a_template_goes_around_the_plain_column() -> None:
    found = read("NuminaMath-CoT", prompt_template="{problem} Box it.")
    assert question(found[0]).endswith("on it now? Box it.") and found.reading.columns["prompt"] == "problem"


def test_completions_to_train_on() -> None:
    assert all(p.fields["completion"].startswith("<think>") for p in read("OpenR1-Math-220k"))


def test_a_hub_dataset_is_read_by_the_same_options(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(shape("AIME-2024").read_text())
    columns = yaml.safe_load(TABLE["AIME-2024"][0])["columns"]
    prompts = hub(path=str(tmp_path), columns=columns, prompt_template="{problem} Box it.")
    assert [p.fields["answer"] for p in prompts] == ["33", "210", "14"] and question(prompts[0]).endswith("Box it.")
