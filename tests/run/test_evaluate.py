"""Measuring: pass@k against counting, maj@k by hand, intervals, and an evaluation of known answers."""

from __future__ import annotations

import csv
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from onpolicy.annotation.scoring import Reward
from onpolicy.config.load import build
from onpolicy.data import load_prompts
from onpolicy.experiments.sweep.compare import pass_rates_by_problem
from onpolicy.rewards.answer import exact_answer, math_answer
from onpolicy.rewards.extract import extract_answer
from onpolicy.run.evaluate import Evaluator, maj_at_k, pass_at_k
from onpolicy.run.exports import export
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling
from onpolicy.utils.stats import bootstrap_ci


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (4, 0, 2), (4, 4, 2), (6, 1, 6)])
def test_pass_at_k_equals_counting_subsets(n: int, c: int, k: int) -> None:
    outcomes = [True] * c + [False] * (n - c)
    assert pass_at_k(n, c, k) == pytest.approx(fmean(any(s) for s in itertools.combinations(outcomes, k)))


def test_impossible_counts_are_refused() -> None:
    for n, c, k in ((3, 4, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass_at_k"):
            pass_at_k(n, c, k)


def test_majorities() -> None:
    answers, right = ["3", "4", "4", None, "3", "3"], [False, True, True, False, False, False]
    assert maj_at_k(answers, right, 4) and not maj_at_k(answers, right, 6)
    assert not maj_at_k(answers, right, 2), "a tie goes to the earliest"
    assert not maj_at_k([None, None], [False, False], 2)


def test_intervals() -> None:
    assert bootstrap_ci([1.0, 1.0]) == (1.0, 1.0)
    low, high = bootstrap_ci([0.0, 1.0] * 50)
    assert 0.38 < low < 0.45 < 0.55 < high < 0.62 and bootstrap_ci([0.0, 1.0] * 50) == (low, high)


class Scripted:
    """Answers problem i with the i-th list."""

    policy_version = 0
    on_progress: Any = staticmethod(lambda done, total, tokens: None)

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = answers

    def generate(self, prompts, *, seed, sampling=None):  # type: ignore[no-untyped-def]
        return [RolloutGroup(prompt=p, rollouts=tuple(self._rollout(t) for t in self.answers[p.id])) for p in prompts]

    def _rollout(self, text: str) -> Rollout:
        reason: Any = "length" if text.endswith("...") else "stop"
        ids = tuple(range(len(text)))
        return Rollout(
            prompt_ids=(1,),
            completion_ids=ids,
            rollout_logprobs=(0.0,) * len(ids),
            text=text,
            finish_reason=reason,
            policy_version=0,
        )  # type: ignore[arg-type]


def test_known_answers_score_exactly_as_constructed(tmp_path: Path) -> None:
    prompts = [
        Prompt(id=str(i), messages=({"role": "user", "content": "?"},), fields={"answer": "4"}) for i in range(2)
    ]
    generator: Any = Scripted(
        {
            "0": [r"\boxed{4}", r"\boxed{4.0}", r"\boxed{5}", "so ..."],
            "1": [r"\boxed{6}", "no", r"\boxed{6}", r"\boxed{4}"],
        }
    )
    evaluator = Evaluator(
        generator=generator, sets={"set": prompts}, reward=Reward("math_answer", 0.1, math_answer),  
        sampling=Sampling(group_size=4), k=[1, 2, 4], final_part=lambda t: t, extract=extract_answer, seed=0,
    )  # fmt: skip
    metrics = evaluator.evaluate(tmp_path)
    assert metrics["eval/set/avg@4"] == pytest.approx((0.5 + 0.25) / 2)
    assert metrics["eval/set/pass@2"] == pytest.approx((5 / 6 + 0.5) / 2) and metrics["eval/set/pass@4"] == 1.0
    assert metrics["eval/set/maj@1"] == 0.5 and metrics["eval/set/maj@4"] == 0.5
    assert metrics["eval/set/truncated"] == pytest.approx(1 / 8) and metrics["eval/set/problems"] == 2.0
    assert metrics["eval/set/avg@4/low"] <= metrics["eval/set/avg@4"] <= metrics["eval/set/avg@4/high"]
    first = json.loads((tmp_path / "set.jsonl").read_text().splitlines()[0])
    assert first["right"] == [True, True, False, False] and first["answers"] == ["4", "4.0", "5", None]


def only_digits(completion: str, answer: str) -> bool | None:
    """None where there is nothing to grade."""
    return answer in completion if any(c.isdigit() for c in completion) else None


def test_samples_that_were_not_graded_are_left_out_and_counted(tmp_path: Path) -> None:
    prompts = [
        Prompt(id=str(i), messages=({"role": "user", "content": "?"},), fields={"answer": "4"}) for i in range(3)
    ]
    texts = {
        "0": [r"\boxed{4}", "none", r"\boxed{4}", r"\boxed{5}"],
        "1": ["none", "none", r"\boxed{6}", r"\boxed{6}"],
        "2": ["none"] * 4,
    }
    generator: Any = Scripted(texts)
    evaluator = Evaluator(
        generator=generator, sets={"set": prompts}, reward=Reward("only_digits", 1.0, only_digits),
        sampling=Sampling(group_size=4), k=[1, 2, 3], final_part=str, extract=extract_answer, seed=0,
        graders=[Reward("math_answer", 1.0, math_answer), Reward("never", 1.0, lambda completion: None)],
    )  # fmt: skip
    metrics = evaluator.evaluate(tmp_path, resume=True)
    assert metrics == evaluator.evaluate(tmp_path, resume=True), "read again from the file"
    found = {name.removeprefix("eval/set/"): value for name, value in metrics.items()}
    assert found["avg@4"] == pytest.approx((2 / 3 + 0) / 2) and found["not_graded"] == 1 + 2 + 4
    assert found["pass@2"] == pytest.approx((pass_at_k(3, 2, 2) + 0) / 2) and found["pass@3"] == 1.0, "of those with 3"
    assert found["maj@1"] == 0.5 and found["maj@3"] == 1.0
    assert found["avg@4/math_answer"] == pytest.approx((0.5 + 0 + 0) / 3) and "avg@4/never" not in found
    first = json.loads((tmp_path / "set.jsonl").read_text().splitlines()[0])
    assert first["right"] == [True, None, True, False] and first["rewards"] == [1.0, None, 1.0, 0.0]
    assert pass_rates_by_problem_of(tmp_path) == {"set": {"0": pytest.approx(2 / 3), "1": 0.0}}
    config = build({"model": {"path": "m"}, "data": {"name": "file", "path": "d"}, "objective": ["policy_gradient"]})
    export(tmp_path, config, metrics)
    rows = list(csv.DictReader((tmp_path / "samples.csv").open()))
    assert [row["right"] for row in rows[:4]] == ["1", "", "1", "0"] and {row["never"] for row in rows} == {""}
    nobody: Any = Scripted({p.id: ["none"] for p in prompts})
    assert "eval/set/avg@1" not in replace(
        evaluator, generator=nobody, sampling=Sampling(group_size=1), graders=[]
    ).evaluate(tmp_path / "none"), "no accuracy of what was never graded"


def pass_rates_by_problem_of(folder: Path) -> Any:
    """What comparisons of runs read, from an evaluation's folder."""
    run = folder / "run"
    (run / "eval" / "step-000001").mkdir(parents=True)
    (run / "eval" / "step-000001" / "set.jsonl").write_text((folder / "set.jsonl").read_text())
    return pass_rates_by_problem(run)


def question(i: int, *, as_json: bool) -> dict[str, Any]:
    """A row as the benchmark files have them: verl's columns, nested or as JSON strings."""
    row: dict[str, Any] = {
        "data_source": f"made_{as_json}",
        "prompt": [{"role": "user", "content": f"What is {i} + {i}?"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": str(2 * i), "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": i, "split": "test"},
    }
    nested = ("prompt", "reward_model", "extra_info")
    return {k: json.dumps(v) if as_json and k in nested else v for k, v in row.items()}


def benchmark_files(folder: Path) -> dict[str, Path]:
    """Six problems in both forms; with ONPOLICY_BENCHMARKS also the real ones in that folder."""
    files = {}
    for form in ("nested", "strings"):
        files[form] = folder / f"{form}.parquet"
        rows = [question(i, as_json=form == "strings") for i in range(1, 7)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files[form])
    real = Path(os.environ.get("ONPOLICY_BENCHMARKS", folder / "none"))
    return files | {path.stem: path for path in sorted(real.glob("a*2*.parquet"))}


def evaluator_of(generator: Any, sets: dict[str, Any], samples: int = 4) -> Evaluator:
    return Evaluator(
        generator=generator, sets=sets, reward=Reward("math_answer", 1.0, math_answer), sampling=Sampling(group_size=samples),
        k=[1, samples], final_part=lambda t: t, extract=extract_answer, seed=0,
        graders=[Reward("exact_answer", 1.0, exact_answer)],
    )  # fmt: skip


def test_benchmark_files_of_both_forms_score_exactly_as_constructed(tmp_path: Path) -> None:
    sets = {name: load_prompts(path) for name, path in benchmark_files(tmp_path).items()}
    assert {"nested", "strings"} <= set(sets) and sets["nested"][0].fields["answer"] == "2"
    # the first problem of each set always right, the second half of the time, one sample right but not to the letter, others wrong
    answers = {}
    for prompts in sets.values():
        for i, p in enumerate(prompts):
            right, also = rf"So \boxed{{{p.fields['answer']}}}", rf"So \boxed{{\frac{{{p.fields['answer']}}}{{1}}}}"
            wrong = r"So \boxed{-17}"
            script = {0: [right] * 4, 1: [wrong, right, wrong, right], 2: [wrong, wrong, wrong, also]}
            answers[p.id] = script.get(i, [wrong] * 4)
    generator = Scripted(answers)
    metrics = evaluator_of(generator, sets).evaluate(tmp_path / "out")
    for name, prompts in sets.items():
        n = len(prompts)
        assert metrics[f"eval/{name}/avg@4"] == pytest.approx((1 + 0.5 + 0.25) / n)
        assert metrics[f"eval/{name}/pass@4"] == pytest.approx(3 / n)
        assert metrics[f"eval/{name}/avg@4/exact_answer"] == pytest.approx((1 + 0.5) / n)
        assert metrics[f"eval/{name}/pass@4/exact_answer"] == pytest.approx(2 / n)
        assert metrics[f"eval/{name}/agrees/exact_answer"] == pytest.approx(1 - 0.25 / n)


class CutOff(Scripted):
    """Ends with an error after so many calls."""

    def __init__(self, answers: dict[str, list[str]], calls: int) -> None:
        super().__init__(answers)
        self.left, self.asked = calls, list[str]()

    def generate(self, prompts, *, seed, sampling=None):  # type: ignore[no-untyped-def]
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked += [p.id for p in prompts]
        return super().generate(prompts, seed=seed, sampling=sampling)


def test_an_evaluation_that_is_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onpolicy.run.evaluate.AT_ONCE", 8)  # two problems a call
    prompts = [
        Prompt(id=str(i), messages=({"role": "user", "content": "?"},), fields={"answer": str(i)}) for i in range(5)
    ]
    answers = {str(i): [rf"\boxed{{{j}}}" for j in range(i, i + 4)] for i in range(5)}
    whole = evaluator_of(Scripted(answers), {"set": prompts}).evaluate(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluator_of(CutOff(answers, 2), {"set": prompts}).evaluate(tmp_path / "cut", resume=True)
    second = CutOff(answers, 9)
    assert evaluator_of(second, {"set": prompts}).evaluate(tmp_path / "cut", resume=True) == whole
    assert second.asked == ["4"], "only what was missing"
    assert (tmp_path / "cut/set.jsonl").read_text() == (tmp_path / "whole/set.jsonl").read_text()
    mended = [replace(p, fields={"answer": "9"}) if p.id == "2" else p for p in prompts]
    mending = CutOff(answers, 9)
    evaluator_of(mending, {"set": mended}).evaluate(tmp_path / "cut", resume=True)
    assert mending.asked == ["2"], "another problem under the same id"
    third = CutOff(answers, 9)
    evaluator_of(third, {"set": prompts}).evaluate(tmp_path / "cut")
    assert third.asked == list("01234"), "while training nothing is taken from an earlier attempt at the step"


def test_what_other_tools_read(tmp_path: Path) -> None:
    prompts = [Prompt(id="p", messages=({"role": "user", "content": "?"},), fields={"answer": "4"})]
    answers = {"p": [r"wait, unlikely. \boxed{4}", r"\boxed{4.0}", "no", "so ..."]}
    metrics = evaluator_of(Scripted(answers), {"set": prompts}).evaluate(tmp_path)
    config = build({"model": {"path": "some/model"}, "eval": {"samples_per_problem": 4}})
    export(tmp_path, config, metrics)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["results"]["set"]["avg@4,none"] == 0.5 and found["results"]["set"]["avg@4/exact_answer,none"] == 0.25
    assert found["n-samples"]["set"] == {"original": 1, "effective": 1} and found["model_name"] == "some/model"
    rows = list(csv.DictReader((tmp_path / "samples.csv").open()))
    assert [r["right"] for r in rows] == ["1", "1", "0", "0"] and [r["exact_answer"] for r in rows] == list("1000")
    assert rows[0]["markers"] == "2" and [r["truncated"] for r in rows] == list("0001")  # wait, (un)likely


def test_the_majority_is_that_of_the_grader() -> None:
    half = [r"\frac12", "1/2", "0.5", "2", "2"]
    assert maj_at_k(half, [True, True, True, False, False], 5)
    assert maj_at_k(["72"] * 4, [True] * 4, 4), "stated without a box"
    assert maj_at_k([None, "5"], [True, False], 2), "what was graded correct votes, whatever was extracted"
    assert not maj_at_k(["3", "x=4", "4", "3.0", "4.0"], [True, False, False, True, False], 5)
