"""Rows of public datasets' shapes, by the lines of docs/data.md: trained a step and evaluated, with a tiny model.

1. The student reads the question and nothing of its answer, the teacher reads both; 2. references that no grader can read are counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from onpolicy.cli import main
from tests.data.test_shapes import ANSWERS, ONLY_HUB, OWN, TABLE, WORK, shape
from tests.runs import metrics, write_config


@pytest.mark.parametrize("name", ["NuminaMath-CoT", "GSM8K", "DAPO-Math-17k", "OpenThoughts-math-OPSD", "Search-R1"])
def test_a_step_and_an_evaluation(name: str, tmp_path: Path) -> None:
    line: dict[str, Any] = yaml.safe_load(TABLE[name][0])
    data = {k: v for k, v in line.items() if k not in ONLY_HUB} | {"name": "file", "path": str(shape(name))}
    has_solution = TABLE[name][-1] != "–"
    config = write_config(
        tmp_path,
        data={**data, "prompts_per_step": 3},
        rewards=[{"name": "math_answer"}],
        contexts={"teacher": "reference_solution" if has_solution else "final_answer"},
        objective=[{"name": "distill", "divergence": "forward_kl"}],
        eval={"every": 1, "sets": {"same": data}, "samples_per_problem": 2, "pass_at": [1, 2]},
        logging={"trackers": ["jsonl"], "samples": 9},
        steps=1,
    )
    assert main(["train", str(config), f"run_dir={tmp_path / 'run'}"]) == 0
    (row,) = (row for row in metrics(tmp_path / "run") if row["step"] == 1)
    assert row["distill/divergence"] > 0 and row["eval/same/problems"] == 3 and "eval/same/avg@2" in row
    samples = [json.loads(text) for text in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    _, answers, work = OWN.get(name, ((), ANSWERS, WORK))
    assert {sample["answer"] for sample in samples} == set(answers)
    shown = work if has_solution else answers
    for sample in samples:
        assert any(part in sample["teacher_prompts"]["teacher"] for part in shown)
        assert not any(part in sample["student_prompt"] for part in (*work, "Correct solution", "final answer is"))


def test_references_that_no_grader_can_read_are_counted(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "answer": "proof"},
        {"problem": "b", "answer": {"target": ["x"]}},
        {"problem": "c", "answer": "{1, x}"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"name": "file", "path": str(path)}
    changes: dict[str, Any] = {
        "data": {**data, "prompts_per_step": 3},
        "contexts": {"teacher": "final_answer"},
        "objective": [{"name": "distill", "divergence": "forward_kl"}],
        "eval": {"sets": {"same": {**data, "problems": 1}}},
        "preflight": {"enabled": False},
        "steps": 1,
    }
    config = write_config(tmp_path, rewards=["math_answer"], **changes)
    with pytest.warns(UserWarning) as caught:
        assert main(["train", str(config), f"run_dir={tmp_path / 'run'}"]) == 0
    told = [str(w.message) for w in caught if "reference answers" in str(w.message)]
    assert (
        told[0].startswith("data: 2 of 3 reference answers cannot be read by a grader")
        and "'proof' of 'rows/1'" in told[0]
    )
    assert told[1].startswith("eval.sets.same: 1 of 1 reference answers")
