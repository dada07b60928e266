"""Whether students of the frontier guess where the reasoner gives up: python scripts/lab_guesses.py RUNS > docs/results/lab/guesses.json

By model (seed 0) and family, problems that nothing trains: after that many failed attempts ("... no"), the mean probability to answer at
once ("so"), to end without an answer, and to go on (a hedging word). ``teacher`` is the reasoner with the solution in its prompt. Routes
over the third map are those whose right attempt rests on a fact that the reasoner states wrongly, so that all three attempts fail.

Besides, in rollouts of the first fifty steps of ``held``: what the teacher says after a failed attempt, where the reasoner would end and
where it would go on.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import fmean

from onpolicy.experiments.lab import grading
from onpolicy.experiments.lab.asking import hinted, probability_of_last, sampler_of
from onpolicy.experiments.lab.data import lab
from onpolicy.experiments.lab.partial import in_the_corpus
from onpolicy.experiments.lab.problem import AGAIN, NO, SO, failed
from onpolicy.experiments.lab.sets import partial_families
from onpolicy.models import PARTIAL_REASONER, resolve_model
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.types import Prompt

ARMS = ("unprotected", "protected", "reversal_markers", "floor_100", "held", "held_end", "protected_end", "grpo_1e-4")
FAMILIES, PROBLEMS, FAILURES = ("route-c-2", "route-b-2", "sums-4"), 40, (1, 2, 3)
STEPS = 50
REASONER = resolve_model(PARTIAL_REASONER)
Shown = Callable[[Prompt], Prompt]


def guesses(sampler: HFGenerator, family: str, failures: int, shown: Shown) -> dict[str, float]:
    draw, nexts = Random(0), {"answers": [SO], "ends": [sampler.renderer.tokenizer.eos_token], "goes_on": list(AGAIN)}
    found: dict[str, list[float]] = {what: [] for what in nexts}
    for prompt in lab(family=family, split="test")[:PROBLEMS]:
        problem = grading.problem_of(prompt.fields["problem_id"])
        if family in partial_families():
            problem = in_the_corpus(problem, draw)
            if any(attempt.works for attempt in problem.attempts):
                continue
        asked, said = sampler.renderer.prompt_ids(shown(prompt).messages), failed(problem, draw, failures)
        for what, words in nexts.items():
            found[what].append(math.fsum(probability_of_last(sampler, asked, f"{said} {word}") for word in words))
    return {what: round(fmean(chances), 4) for what, chances in found.items()}


def measured(model: str, shown: Shown = lambda prompt: prompt) -> dict[str, dict[str, dict[str, float]]]:
    sampler = sampler_of(model)
    return {
        family: {str(failures): guesses(sampler, family, failures, shown) for failures in FAILURES}
        for family in FAMILIES
    }


def in_rollouts(run: Path) -> dict[str, dict[str, float]]:
    sampler = sampler_of(REASONER)
    tokenizer = sampler.renderer.tokenizer
    found: dict[str, list[float]] = {"ends": [], "goes_on": []}
    for row in map(json.loads, (run / "samples.jsonl").read_text().splitlines()):
        if row["step"] > STEPS:
            break
        alone, told = (
            tokenizer.encode(text, add_special_tokens=False)
            for text in (row["student_prompt"], row["teacher_prompts"]["teacher"])
        )
        words = row["completion"].split()
        for said in (" ".join(words[: i + 1]) for i, word in enumerate(words) if word == NO):
            ends = probability_of_last(sampler, alone, f"{said} {tokenizer.eos_token}") > 0.5
            found["ends" if ends else "goes_on"].append(probability_of_last(sampler, told, f"{said} {SO}"))
    return {what: {"places": len(p), "teacher_answers": round(fmean(p), 4)} for what, p in found.items()}


if __name__ == "__main__":
    runs = Path(sys.argv[1])
    models = {arm: runs.joinpath(arm).glob("*/seed-0/checkpoints/step-000300") for arm in ARMS}
    (held,) = runs.glob("held/*/seed-0")
    report = {
        "after_failures": {
            "reasoner": measured(REASONER),
            "teacher": measured(REASONER, lambda prompt: hinted(prompt, prompt.fields["solution"])),
            **{arm: measured(str(checkpoint)) for arm, found in models.items() for checkpoint in found},
        },
        "in_rollouts": in_rollouts(held),
    }
    print(json.dumps(report, indent=1))
