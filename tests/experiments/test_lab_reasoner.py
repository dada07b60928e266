"""The shipped reasoner, and the paper's effect in small.

1. it searches, checks and is right, and is right at once where a solution is shown; 2. vLLM and transformers read it alike; 3. a minute
of self-distillation on eight problems takes length, self-doubt and problems out of domain; signs, not sizes; 4. the commands of the lab.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from onpolicy.data.rendering import Renderer
from onpolicy.experiments.lab.claims import Claim, over_seeds
from onpolicy.experiments.lab.data import lab
from onpolicy.experiments.lab.grading import facts, self_doubt_recall, verdicts
from onpolicy.experiments.lab.readout import readout
from onpolicy.experiments.sweep.compare import pass_rates_by_problem
from onpolicy.models import load_tokenizer, resolve_model
from onpolicy.rewards.answer import exact_answer
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.types import Prompt, Sampling
from tests.runs import run_here

REASONER = resolve_model("lab-reasoner")
CONFIG = Path("configs/lab/self_distillation.yaml")


@pytest.fixture(scope="module")
def generator() -> HFGenerator:
    return HFGenerator(
        renderer=Renderer(load_tokenizer(REASONER)),
        model=REASONER,
        sampling=Sampling(group_size=2, max_tokens=192),
        max_model_len=512,
        batch_size=256,
    )


def answers(generator: HFGenerator, prompts: list[Prompt]) -> list[tuple[Prompt, str]]:
    groups = generator.generate(prompts, seed=0)
    return [(p, r.text) for p, g in zip(prompts, groups, strict=True) for r in g.rollouts]


def shown(prompt: Prompt, field: str) -> Prompt:
    question = prompt.messages[0]["content"]
    return replace(prompt, messages=({"role": "user", "content": f"{question} hint {prompt.fields[field]}"},))


@pytest.mark.parametrize(("family", "least"), [("route-a-2", 0.8), ("route-b-2", 0.8), ("sums-4", 0.8)])
def test_it_searches_and_checks(generator: HFGenerator, family: str, least: float) -> None:
    said = answers(generator, lab(family=family, split="test")[:60])
    assert fmean(exact_answer(text, p.fields["answer"]) for p, text in said) >= least
    for grade in (facts, verdicts, self_doubt_recall):
        values = [v for p, text in said if (v := grade(text, p.fields["problem_id"])) is not None]
        assert len(values) > 60 and fmean(values) > 0.9, grade.__name__


@pytest.mark.parametrize("field", ["direct", "solution"])
def test_a_solution_makes_the_search_unnecessary(generator: HFGenerator, field: str) -> None:
    said = answers(generator, [shown(p, field) for p in lab(family="route-a-2", split="test")[:60]])
    assert fmean(exact_answer(text, p.fields["answer"]) for p, text in said) >= 0.95
    assert fmean(len(text.split()) for _, text in said) < 12, "a third of a search"


def test_leaving_out_what_has_stopped_changes_nothing(generator: HFGenerator) -> None:
    prompts = lab(family="sums-4", split="test")[:6]
    together = generator.generate(prompts, seed=3)
    lengths = [len(r.completion_ids) for g in together for r in g.rollouts]
    assert min(lengths) < max(lengths) / 2, "most rows stop long before the last"
    for prompt, group in zip(prompts, together, strict=True):
        (alone,) = generator.generate([prompt], seed=3)
        assert [r.completion_ids for r in alone.rollouts] == [r.completion_ids for r in group.rollouts]
        for rollout in group.rollouts:
            read = generator.logprobs([*rollout.prompt_ids, *rollout.completion_ids])[-len(rollout.completion_ids) :]
            assert read == pytest.approx(list(rollout.rollout_logprobs), abs=1e-5)


@pytest.mark.vllm
def test_vllm_and_transformers_read_it_alike(generator: HFGenerator) -> None:
    from onpolicy.rollout.vllm_generator import VLLMGenerator

    engine = VLLMGenerator(
        renderer=generator.renderer, model=REASONER, sampling=generator.sampling, max_model_len=512, dtype="float32"
    )
    try:
        groups = engine.generate(lab(family="sums-5", split="test")[:4], seed=0)
    finally:
        engine.close()
    for rollout in (r for g in groups for r in g.rollouts):
        ours = generator.logprobs([*rollout.prompt_ids, *rollout.completion_ids])
        assert ours[-len(rollout.completion_ids) :] == pytest.approx(list(rollout.rollout_logprobs), abs=1e-5)


@pytest.mark.slow
def test_the_papers_effect_in_small(tmp_path: Path) -> None:
    small = ["steps=15", "eval.every=15", "preflight.enabled=false", "trainer.lr=1e-3", "eval.sets.longer.problems=16"]
    assert run_here(CONFIG, *small, f"run_dir={tmp_path / 'run'}") == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][1:]
    first, last = rows[0], rows[-1]
    assert last["rollout/completion_length/mean"] < first["rollout/completion_length/mean"] / 2
    assert last["epistemic/paper10/rate_per_1k"] < first["epistemic/paper10/rate_per_1k"]
    assert last["reward/mean"] >= 0.9, "what it is trained on, it can do"
    before, after = (pass_rates_by_problem(tmp_path / "run", step) for step in (0, 15))
    for name in ("other_map", "longer"):
        assert fmean(after[name].values()) < fmean(before[name].values()), name
    started, measured = (readout(tmp_path / "run", {"out": ["other_map", "sums"]}, step) for step in (0, None))
    assert measured["out"].keys() >= {"corrected", "attempts", "facts"}
    assert measured["out"]["attempts"] < started["out"]["attempts"], "the search goes"


def test_verdicts_on_claims() -> None:
    said = {low: Claim("a", "", 0.0, low, low + 2, positive=True).verdict for low in (-3.0, -1.0, 1.0)}
    assert said == {-3.0: "fails", -1.0: "open", 1.0: "holds"}
    assert Claim("a", "", -2.0, -3, -1, positive=False).verdict == "holds"
    claim = over_seeds("b", "", [1.0, 2.0, 3.0], positive=True)  # 2 -+ 4.303 / sqrt(3)
    assert (claim.value, round(claim.low, 3), round(claim.high, 3)) == (2.0, -0.484, 4.484)
