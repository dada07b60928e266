"""What runs cost: tokens that teachers read, counted where they are read; sums and shares of the first arm by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onpolicy.experiments.sweep.budgets import budgets, budgets_table, costs
from onpolicy.trainer.teacher_rules import frozen, live, trust_region_logits
from tests.tiny import random_examples
from tests.trainer.test_teacher import distill_term, trainer


def test_tokens_that_teachers_read() -> None:
    examples = random_examples(6, with_teacher=0.5)
    read = [e for e in examples if e.teacher_prompt_ids]
    assert 0 < len(read) < len(examples)
    completions = lambda chosen: sum(len(e.rollout.completion_ids) for e in chosen)  # noqa: E731
    teacher = sum(len(e.teacher_prompt_ids["teacher"]) for e in read) + completions(read)
    start = sum(len(e.rollout.prompt_ids) for e in examples) + completions(examples)
    for rule, readers in ((frozen(), 1), (live(), 1), (trust_region_logits(), None)):
        one = trainer(rule, distill_term())
        found = one.step(examples)["teacher/tokens"]
        times = readers or len(one.teacher_scorer.readers)
        assert found == times * teacher + (start if one.objective.needs_ref else 0), (
            "the reference model reads every rollout"
        )


def spending(folder: Path, *rows: dict[str, float]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i} | row) + "\n" for i, row in enumerate(rows)))
    return folder


def test_budgets_by_hand(tmp_path: Path) -> None:
    row = {"rollout/sampled_tokens": 10.0, "rollout/tokens": 8.0, "teacher/tokens": 30.0}
    baseline = {"rollout/sampled_tokens": 5.0}
    plain = [spending(tmp_path / f"a{s}", baseline, row, row) for s in (0, 1)]
    other = [spending(tmp_path / f"b{s}", *[row] * (s + 1)) for s in (0, 1, 2)]
    assert costs(plain[0]) == {"tokens/generated": 25.0, "tokens/trained": 16.0, "tokens/scored": 60.0}
    runs = [("plain", "", s, plain[s]) for s in (0, 1)] + [("other", "", s, other[s]) for s in (0, 1, 2)]
    found = {(b.arm, b.kind): b for b in budgets(runs, "plain")}
    assert found["plain", "generated"].total == 50.0 and found["plain", "generated"].relative == 1.0
    other_ = found["other", "generated"]
    assert (other_.total, other_.mean, other_.seeds) == (60.0, 20.0, 3)
    assert other_.relative == pytest.approx(30 / 50), "over the two seeds that both have"
    assert found["other", "scored"].relative == pytest.approx(90 / 120)
    (column,) = list(budgets_table(list(found.values())).columns)[1:2]
    assert list(column.cells) == ["25 [dim]×1.00[/dim]", "20 [dim]×0.60[/dim]"]


def test_what_was_not_logged_is_not_said(tmp_path: Path) -> None:
    old = spending(tmp_path / "old", {"rollout/sampled_tokens": 10.0, "rollout/tokens": 8.0})
    grpo = spending(tmp_path / "grpo", {"rollout/sampled_tokens": 10.0, "rollout/tokens": 8.0, "teacher/tokens": 0.0})
    found = {(b.arm, b.kind): b for b in budgets([("grpo", "", 0, grpo), ("old", "", 0, old)], "grpo")}
    assert ("old", "scored") not in found
    assert found["grpo", "scored"].total == 0.0 and found["grpo", "scored"].relative is None
