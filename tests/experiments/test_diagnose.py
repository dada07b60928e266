"""``onpolicy diagnose``: statistics and rules by hand, the page, and the command on the lab's reasoner, where the truth is known.

1. intervals, the test and Holm; 2. every measure of hand-made answers; 3. what the verdict says of which measures; 4. the page; 5. what is
asked; 6. a model against itself; 7. against the same reasoner after a short self-distillation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onpolicy.cli import main
from onpolicy.data.rendering import Renderer
from onpolicy.experiments.diagnose import answers
from onpolicy.experiments.diagnose.answers import Asked, Probed, opened
from onpolicy.experiments.diagnose.findings import Findings, LostProblem, find
from onpolicy.experiments.diagnose.measures import (
    ACCURACY,
    CORRECTED,
    OTHER,
    TRUNCATED,
    WORDS,
    Measured,
    accuracy_of_sets,
    adjusted,
    compare_answers,
    ks,
    rate_name,
    read_problems,
)
from onpolicy.experiments.diagnose.page import page_of
from onpolicy.experiments.diagnose.questions import DOUBTS, UNCERTAINTY, asked_config, asked_problems, resolved_for
from onpolicy.experiments.diagnose.verdict import Diagnosis, diagnose_measures, primary_measures
from onpolicy.models import load_tokenizer, resolve_model
from onpolicy.rewards.extract import extract_answer
from onpolicy.run.evaluation_files import ProblemResult
from onpolicy.types import Prompt
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.stats import Estimate, holm, swap_test
from tests.runs import run_here
from tests.tiny import byte_tokenizer

LEXICONS = ("self_doubt", "hedges")
LAB = "lab/self_distillation"


def mean_difference(draws: np.ndarray) -> np.ndarray:
    return np.asarray((draws[:, :, 1] - draws[:, :, 0]).mean(1))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0] and holm([]) == []


def test_the_swap_test_counts_swaps() -> None:
    """Three problems that all differ alike: of eight ways to swap them two are as extreme."""
    assert swap_test(np.array([[0.0, 1.0]] * 3), mean_difference) == pytest.approx(1 / 4, abs=0.02)
    assert swap_test(np.array([[0.5, 0.5]] * 3), mean_difference) == 1.0
    assert swap_test(np.array([[0.0, 1.0]] * 20), mean_difference) < 0.001


def test_the_swap_test_keeps_its_level() -> None:
    """Of equal models it finds one in twenty to differ, however the problems differ among themselves; fewer where many are ties."""
    draw = np.random.default_rng(0)
    spread = np.exp(draw.normal(size=(400, 12, 1)))
    found = [swap_test(values, mean_difference, draws=199) for values in draw.normal(size=(400, 12, 2)) * spread]
    assert 0.02 < np.mean([p < 0.05 for p in found]) < 0.08


def problem(name: str, texts: list[str], answer: str = "4") -> tuple[ProblemResult, Prompt]:
    prompt = Prompt(id=name, messages=({"role": "user", "content": "2 + 2?"},), fields={"answer": answer})
    found = [extract_answer(text) for text in texts]
    right: list[bool | None] = [a == answer for a in found]
    rewards = [None if r is None else float(r) for r in right]
    cut = [text.endswith("...") for text in texts]
    return ProblemResult(name, rewards, right, found, [len(t) for t in texts], cut, texts), prompt


def compared(base: list[list[str]], trained: list[list[str]], primary: tuple[str, ...] = ()) -> dict[str, Measured]:
    renderer = Renderer(byte_tokenizer())
    models = []
    for texts in (base, trained):
        rows = [problem(str(i), found) for i, found in enumerate(texts)]
        models.append(read_problems([r for r, _ in rows], [p for _, p in rows], renderer, LEXICONS))
    (found,) = adjusted(compare_answers(models[0], models[1], LEXICONS, primary))
    return {m.name: m for m in found}


CAREFUL = r"Maybe \boxed{5}. Wait, no: \boxed{4}"
BRISK = r"\boxed{5}"
RIGHT = r"\boxed{4}"


def test_measures_by_hand() -> None:
    found = compared([[CAREFUL, RIGHT], [CAREFUL, BRISK]], [[BRISK, RIGHT], [BRISK, BRISK + " and so on ..."]])
    accuracy = found[ACCURACY]
    assert (accuracy.base, accuracy.trained) == (0.75, 0.25)
    assert accuracy.difference == Estimate(-0.5, -0.5, -0.5), "both problems fall by one half"
    assert (found["pass@2"].base, found["pass@2"].trained) == (1.0, 0.5)
    assert found["pass@2"].difference == Estimate(-0.5, -1.0, 0.0)
    words, careful, brisk, right = found[WORDS], 7, 2, 2  # boxed is one
    assert words.base == (careful + right + careful + brisk) / 4 == 4.5 and words.trained == (2 + 2 + 2 + 5) / 4
    assert words.relative is not None and words.relative.mean == pytest.approx(2.75 / 4.5 - 1)
    tokens = 2 * len(CAREFUL) + len(RIGHT) + len(BRISK)
    assert found[rate_name("self_doubt", False)].base == pytest.approx(1000 * 2 / tokens)
    assert found["hedges / answer"].base == 0.5 and found["hedges / answer"].trained == 0.0
    assert found[TRUNCATED].trained == 0.25
    corrected = found[CORRECTED]
    assert (corrected.base, corrected.trained, corrected.counted) == (1.0, None, (2, 0))
    assert corrected.difference is None and found["start wrong and end right"].base == 0.5
    assert found["right starts spoiled"].base is None


def test_calibration_by_hand() -> None:
    """The base's agreement tells right from wrong, the trained model's tells the opposite."""
    good, bad = [[RIGHT, RIGHT, BRISK]] * 2, [[BRISK, BRISK, RIGHT]] * 2
    found = compared(good, bad)["AUROC of agreement"]
    assert (found.base, found.trained, found.counted) == (1.0, 0.0, (6, 6))
    assert found.difference == Estimate(-1.0, -1.0, -1.0)
    gap = compared(good, bad)["agreement minus accuracy"]
    assert gap.base == pytest.approx(1 / 3 - 2 / 3) and gap.trained == pytest.approx(1 / 3 - 1 / 3)


def test_answers_that_were_not_graded_are_left_out() -> None:
    (result, prompt), renderer = problem("p", [RIGHT, BRISK, RIGHT]), Renderer(byte_tokenizer())
    ungraded = replace(result, right=[True, None, None], graded={"x:mine": [True, None, False]})
    models = [read_problems([r], [prompt], renderer, LEXICONS) for r in (result, ungraded)]
    found = {m.name: m for m in compare_answers(models[0], models[1], LEXICONS, ())}
    assert found[ACCURACY].base == pytest.approx(2 / 3) and found[ACCURACY].trained == 1.0
    assert found["pass@2"].trained is None and found["mine"].trained == 0.5 and found["mine"].base is None
    (by_set,) = accuracy_of_sets({"s": models[0]}, {"s": models[1]})
    assert by_set.name == "s" and by_set.trained == 1.0


def test_which_k() -> None:
    assert [ks(n) for n in (1, 2, 6, 8)] == [[], [2], [2, 4, 6], [2, 4, 8]]


def test_primary_measures_are_tested_together() -> None:
    """Two tests of twelve problems that all differ: Holm doubles the smaller p-value."""
    found = compared([[CAREFUL, RIGHT]] * 12, [[BRISK, BRISK]] * 12, (ACCURACY, WORDS))
    alone = compared([[CAREFUL, RIGHT]] * 12, [[BRISK, BRISK]] * 12, (ACCURACY,))
    assert found[ACCURACY].p is not None and alone[ACCURACY].p is not None
    assert found[ACCURACY].p == pytest.approx(2 * (alone[ACCURACY].p or 0)) and found[ACCURACY].differs
    assert found["pass@2"].p is None


def measured(name: str, difference: float, p: float, group: str = ACCURACY) -> Measured:
    found = Measured(
        group, name, 0.9, 0.9 + difference, Estimate(difference, difference - 0.1, difference + 0.1), (40, 40)
    )
    relative = Estimate(difference / 0.9, -0.5, -0.1) if group != ACCURACY else None
    return replace(found, p=p, relative=relative)


def verdict(*measures: Measured, by_set: Sequence[Measured] = (), problems: int = 40, alike: bool = False) -> Diagnosis:
    return diagnose_measures(measures, by_set, primary_measures(8, per_words=False), problems, alike)


def test_harm_on_one_set_is_not_hidden_by_another() -> None:
    """In domain from 2 of 8 to 7, elsewhere back: together nothing has changed."""
    few, many = [RIGHT] * 2 + [BRISK] * 6, [RIGHT] * 7 + [BRISK]
    rows = {"in": (few, many), "out": (many, few)}
    renderer, models = Renderer(byte_tokenizer()), []
    for model in (0, 1):
        made = {name: [problem(f"{name}{i}", texts[model]) for i in range(20)] for name, texts in rows.items()}
        models.append(
            {n: read_problems([r for r, _ in m], [p for _, p in m], renderer, LEXICONS) for n, m in made.items()}
        )
    both = [[p for read in sets.values() for p in read] for sets in models]
    primary = primary_measures(8, per_words=False)
    measures, by_set = adjusted(compare_answers(both[0], both[1], LEXICONS, list(primary)), accuracy_of_sets(*models))
    found = diagnose_measures(measures, by_set, primary, 40, alike=False)
    assert found.found == "harm" and "accuracy on out -0.62" in found.headline and "on in" not in found.headline
    assert any("accuracy on in +0.62" in line for line in found.details)


def test_an_answer_said_twice_is_no_wrong_start() -> None:
    twice = rf"The answer is 5. {BRISK}"
    found = compared([[BRISK, CAREFUL]], [[twice, CAREFUL]])
    assert found["answers with an earlier one"].base == found["answers with an earlier one"].trained == 0.5
    assert found[CORRECTED].base == found[CORRECTED].trained == 1.0


def test_problems_graded_in_one_model_alone_count_for_neither() -> None:
    """A verifier that cannot read the trained model's answers to the hard half must not raise its accuracy."""
    renderer = Renderer(byte_tokenizer())
    base = [problem(str(i), [RIGHT if i < 4 else BRISK, BRISK]) for i in range(8)]
    trained = [(replace(r, right=[None, None]) if i >= 4 else r, p) for i, (r, p) in enumerate(base)]
    models = [read_problems([r for r, _ in m], [p for _, p in m], renderer, LEXICONS) for m in (base, trained)]
    found = {m.name: m for m in compare_answers(models[0], models[1], LEXICONS, ())}
    assert found[ACCURACY].base == found[ACCURACY].trained == 0.5 and found[ACCURACY].counted == (4, 4)


def test_a_measuring_reward_named_like_a_measure_is_not_tested() -> None:
    renderer = Renderer(byte_tokenizer())
    graded: dict[str, list[bool | None]] = {"mine.py:accuracy": [True, True]}
    rows = [
        [(replace(r, graded=graded), p) for r, p in (problem(str(i), texts) for i in range(12))]
        for texts in ([RIGHT, RIGHT], [BRISK, BRISK])
    ]
    models = [read_problems([r for r, _ in m], [p for _, p in m], renderer, LEXICONS) for m in rows]
    (found,) = adjusted(compare_answers(models[0], models[1], LEXICONS, (ACCURACY,)))
    accuracy, reward = (next(m for m in found if m.group == group) for group in (ACCURACY, OTHER))
    assert accuracy.differs and reward.name == "accuracy" and reward.p is None
    verdict_ = diagnose_measures(found, [], primary_measures(8, per_words=False), 12, alike=False)
    assert verdict_.headline.startswith("Harm found: accuracy -1.00")


def test_where_nothing_could_fall() -> None:
    low = Measured(ACCURACY, ACCURACY, 0.0, 0.0, Estimate(0.0, 0.0, 0.0), (40, 40), p=1.0)
    assert verdict(low).details[0].startswith("The base has no correct answer, so that no fall")
    assert "cannot be seen" not in " ".join(verdict(replace(low, base=1.0, trained=1.0)).details)


def test_the_rules_of_the_verdict() -> None:
    length = measured(WORDS, -0.45, 0.001, "length")
    harm = verdict(measured(ACCURACY, -0.2, 0.01), length)
    assert harm.found == "harm" and harm.headline == "Harm found: accuracy -0.20 (95 % -0.30 to -0.10)"
    assert harm.details[0] == "Also: length -50 % (95 % -50 to -10 %)."
    change = verdict(measured(ACCURACY, -0.2, 0.2), length)
    assert change.found == "change" and "length -50 %" in change.headline
    assert "differences in accuracy below 0.10 cannot be seen" in " ".join(change.details)
    nothing = verdict(measured(ACCURACY, -0.2, 0.05), measured("pass@8", -0.2, 1.0))
    assert nothing.found == "nothing" and "none of 2 primary measures is different" in nothing.headline
    assert verdict(measured(TRUNCATED, 0.2, 0.01, "length")).found == "harm", "more answers are cut off"
    assert verdict(measured(TRUNCATED, -0.2, 0.01, "length")).found == "nothing", "fewer are"
    better = verdict(measured(ACCURACY, 0.2, 0.01))
    assert better.found == "nothing" and "Also: accuracy +0.20" in better.details[0]


def test_the_verdict_says_what_it_cannot_say() -> None:
    few = " ".join(verdict(measured(ACCURACY, -0.2, 0.2), problems=4).details)
    assert "4 problems are too few for the test to find anything: expected 6 or more" in few, "2 ** -4 > .05 > 2 ** -5"
    assert f"no answer to measure it on: pass@8, {CORRECTED}" in few
    assert "word for word" in " ".join(verdict(measured(ACCURACY, 0.0, 1.0), alike=True).details)


def findings() -> Findings:
    shares = [measured(ACCURACY, -0.2, 0.01), replace(measured(CORRECTED, 0.0, 1.0), difference=None, trained=None)]
    lost = LostProblem("unseen", "p<1>", "2 + 2?", 3, "<script>alert(1)</script>", "five")
    return Findings(
        base="A", trained="B & C", asked={"unseen": 30, "sums": 10}, samples=8, settings={"seed": 0},
        notes=["The tokenizers differ."], verdict=verdict(*shares), measures=shares,
        by_set=[measured("unseen", -0.1, 1.0), measured("sums", -0.3, 1.0)],
        probes={"base": Probed(why_not="left out"), "trained": Probed()}, lost=[lost], lost_in_all=3, gained=1,
    )  # fmt: skip


def test_the_page_is_whole_and_safe() -> None:
    page = page_of(findings())
    assert "Harm found: accuracy -0.20 (95 % -0.30 to -0.10)" in page and "B &amp; C" in page
    assert "30 of unseen, 10 of sums" in page and "accuracy: sums" in page and "The tokenizers differ." in page
    assert "3 of 40 problems" in page and "1 the other way round" in page and "p&lt;1&gt;" in page
    assert "<script" not in page and "&lt;script&gt;" in page and "default-src 'none'" in page
    assert not re.findall(r"(?:https?:)?//\w", page), "it loads nothing"
    assert page.count('<tr class="differs">') == 1 and "base: no probes: left out" in page
    assert json.loads(json.dumps(findings().plain()))["verdict"]["found"] == "harm"


def test_what_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = asked_config(None, ["seed=3"], 8)
    assert built_in.eval.sets["gsm_symbolic"]["name"] == "gym" and built_in.seed == 3
    assert built_in.epistemic.lexicon == UNCERTAINTY and set(DOUBTS) < set(built_in.epistemic.lexicons)
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"problem": "2 + 2?", "answer": "4"}))
    assert asked_config(str(data), [], 8).eval.sets == {"mine": {"name": "file", "path": str(data)}}
    assert asked_config("org/set", [], 8).eval.sets == {"set": {"name": "hub", "path": "org/set"}}
    lab = asked_config(LAB, ["eval.temperature=0.7"], 6)
    assert list(lab.eval.sets) == ["unseen", "other_map", "longer", "sums"] and lab.eval.samples_per_problem == 6
    assert lab.generator["max_tokens"] == 160 and lab.generator["temperature"] == 0.7, "probes draw as evaluations do"
    assert {"rewarded", "held_out"} < set(lab.epistemic.lexicons)
    without = tmp_path / "grpo.yaml"
    data_section = "data: {name: file, path: d.jsonl, prompts_per_step: 2}"
    without.write_text(f"{{model: {{path: x}}, {data_section}, rewards: [math_answer], objective: [policy_gradient]}}")
    assert asked_config(str(without), [], 8).eval.sets == {"data": {"name": "file", "path": "d.jsonl"}}
    for override, option in (
        ("model.path=x", "--base"),
        ("eval.samples_per_problem=2", "--samples"),
        ("run_dir=x", "--output"),
    ):
        with pytest.raises(ConfigError, match=option):
            asked_config(None, [override], 8)


def test_problems_are_shared_among_sets() -> None:
    resolved = resolved_for(asked_config(LAB, [], 8), "lab-reasoner")
    renderer = opened(resolved).renderer
    numbers = {
        problems: [len(p) for p in asked_problems(resolved, renderer, problems).values()] for problems in (2, 40, 100)
    }
    assert numbers[40] == [10] * 4 and sum(numbers[2]) == 2 and sum(numbers[100]) == 100
    assert numbers[100][2] == 20, "one set has no more"


def test_the_words_of_the_lab_have_classes() -> None:
    renderer = Renderer(load_tokenizer(resolve_model("lab-reasoner")))
    text = "maybe a no wait perhaps b no hmm maybe c yes so #### c"
    result, prompt = problem("p", [text], "c")
    (read,) = read_problems([result], [prompt], renderer, (UNCERTAINTY, *DOUBTS, "neutral"))
    assert {name: len(spans) for name, spans in read.marked[0].spans.items()} == {
        UNCERTAINTY: 3, "self_doubt": 2, "hedges": 3, "alternatives": 0, "neutral": 1,  # neighbours are one
    }  # fmt: skip


def diagnose_lab(tmp_path: Path, trained: str, *options: str) -> int:
    return main(["diagnose", "--base", "lab-reasoner", "--trained", trained, LAB, *options, "--output", str(tmp_path)])


def test_a_model_against_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--problems", "2", "--samples", "2", "eval.max_tokens=48"]
    assert diagnose_lab(tmp_path, "lab-reasoner", *asked) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "No harm found" in printed and "same answers, word for word" in printed and "uncertainty banned" in printed
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert found["verdict"]["found"] == "nothing" and found["problems"] == 2
    assert {m["name"]: m["difference"]["mean"] for m in found["measures"] if m["difference"]}[ACCURACY] == 0.0
    assert "No harm found" in (tmp_path / "diagnosis.html").read_text()

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("it samples again")

    monkeypatch.setattr("onpolicy.rollout.hf_generator.HFGenerator.generate", refuse)
    assert diagnose_lab(tmp_path, "lab-reasoner", *asked, "--json") == 0, "everything is kept"
    assert json.loads(capsys.readouterr().out)["verdict"]["found"] == "nothing"
    assert diagnose_lab(tmp_path, "lab-reasoner", *asked, "seed=1") == 2
    assert "--output" in (said := capsys.readouterr().err) and "seed: 0 there, 1 here" in said


def test_errors_name_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose_lab(tmp_path, "no/such/model") == 2
    assert "--trained: 'no/such/model'" in capsys.readouterr().err
    missing = ["diagnose", "--base", "lab-reasoner", "--trained", "lab-reasoner"]
    assert main([*missing, "none.csv"]) == 2 and "data file 'none.csv' does not exist" in capsys.readouterr().err
    assert main([*missing, "none.yaml"]) == 2 and "config file 'none.yaml' does not exist" in capsys.readouterr().err
    assert main([*missing, "eval.temperature=-1"]) == 2 and "eval.temperature" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["diagnose", "--base", "lab-reasoner"])
    assert "--trained" in capsys.readouterr().err


def sampled(folder: Path, name: str, model: str, *overrides: str) -> Asked:
    """One model's answers to the lab's problems, without probes."""
    from rich.console import Console

    resolved = resolved_for(asked_config(LAB, overrides, 8), model)
    handle = opened(resolved)
    asked = Asked(
        resolved, handle, asked_problems(resolved_for(asked_config(LAB, [], 8), model), handle.renderer, 40), folder
    )
    answers.answer(asked, name, Console(), probes=False)
    return asked


@pytest.mark.slow
def test_the_known_truth_of_the_lab(tmp_path: Path) -> None:
    """Other samples of the same reasoner are no harm; a short self-distillation is: it takes accuracy, length and doubt."""
    small = ["steps=15", "eval.every=0", "preflight.enabled=false", "trainer.lr=1e-3"]
    assert run_here(Path("configs/lab/self_distillation.yaml"), *small, f"run_dir={tmp_path / 'run'}") == 0
    base = sampled(tmp_path / "base", "base", "lab-reasoner")
    same = find(base, sampled(tmp_path / "same", "trained", "lab-reasoner", "seed=1"), {})
    assert same.verdict.found == "nothing" and not any("word for word" in line for line in same.verdict.details)
    distilled = sampled(tmp_path / "distilled", "trained", str(tmp_path / "run/checkpoints/step-000015"))
    found = find(base, distilled, {})
    assert found.verdict.found == "harm" and found.verdict.headline.startswith("Harm found: accuracy -")
    falls = {m.name: m.difference.high < 0 for m in found.measures if m.difference}
    assert falls[WORDS] and falls[rate_name(UNCERTAINTY, False)] and falls["self_doubt / answer"] and falls["corrected"]
    assert found.lost_in_all > found.gained
