"""Whether a reasoner that has learned the interpreter's task is fit for ``onpolicy lab feedback``: what it does before anything trains it.

A teacher that reads the error of a failed attempt says nothing about feedback unless its retry follows the error. So that is measured, on
new programs and on the reasoner's own failures, sampled as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from onpolicy.experiments.lab.asking import hinted, sampler_of
from onpolicy.experiments.lab.data import lab
from onpolicy.experiments.lab.grading import program_of
from onpolicy.experiments.lab.interpreter import first_error, named_step, trace, wrong_steps
from onpolicy.protocols import Sampler
from onpolicy.rewards.answer import exact_answer
from onpolicy.types import Prompt, Sampling
from onpolicy.utils.errors import ModelError

IN_DOMAIN, PROGRAMS, SEARCHES = "run-3", ("run-3", "run-5"), ("route-a-2", "route-b-2", "sums-4")
PROBLEMS = 100
LEAST = 0.9
"""Fraction of the retries that have to follow the error."""


@dataclass(frozen=True)
class Retries:
    """What failed attempts at programs of three steps become when the reasoner has read the interpreter's error."""

    failed: int
    """Attempts that failed, of 400."""
    followed: float
    """Fraction of the retries that are right up to the step that was named, that step included."""
    one_wrong: int
    """Failed attempts with one wrong step."""
    all_right: float
    """Fraction of their retries that are right in every step and in the answer."""


@dataclass(frozen=True)
class Soundness:
    """What a reasoner does on problems that are new to it."""

    alone: dict[str, float]
    """Family -> accuracy without a hint."""
    shipped: dict[str, float]
    """The same of the reasoner that it was made from, on searches."""
    answer_given: float
    """Fraction of its answers to programs of three steps that are the answer at once, where the prompt shows it."""
    retries: Retries


def soundness(reasoner: str, shipped: str, problems: int = PROBLEMS) -> Soundness:
    """Measures a reasoner, four answers to each problem of a family."""
    sampler = sampler_of(reasoner)
    tests = {family: lab(family=family, split="test")[:problems] for family in (*PROGRAMS, *SEARCHES)}
    shown = [hinted(p, p.fields["direct"]) for p in tests[IN_DOMAIN]]
    return Soundness(
        alone={family: accuracy(sampler, prompts) for family, prompts in tests.items()},
        shipped={family: accuracy(sampler_of(shipped), tests[family]) for family in SEARCHES},
        answer_given=fmean(text == p.fields["direct"] for p, text in answers(sampler, shown)),
        retries=retries(sampler, problems),
    )


def retries(sampler: Sampler, problems: int = PROBLEMS) -> Retries:
    """Lets a reasoner try programs, and try again what failed with the interpreter's error in the prompt."""
    failed = [
        (prompt, text, error)
        for prompt, text in answers(sampler, lab(family=IN_DOMAIN, split="test")[:problems])
        if not exact_answer(text, prompt.fields["answer"]) and (error := first_error(program_of(prompt.id), text))
    ]
    asked = [replace(hinted(prompt, error), id=f"{prompt.id} {i}") for i, (prompt, _, error) in enumerate(failed)]
    followed, all_right = [], []
    for (prompt, attempt, error), (_, retry) in zip(failed, answers(sampler, asked, each=1), strict=True):
        program = program_of(prompt.id)
        followed.append(retry.startswith(trace(program, program.values[: named_step(error)])))
        if wrong_steps(program, attempt) == 1:
            all_right.append(first_error(program, retry) == "")
    return Retries(
        failed=len(failed),
        followed=fmean(followed or [0.0]),
        one_wrong=len(all_right),
        all_right=fmean(all_right or [0.0]),
    )


def require_sound(reasoner: str) -> None:
    """Raises ModelError where retries do not follow the interpreter's error."""
    found = retries(sampler_of(reasoner))
    if found.followed < LEAST:
        raise ModelError(
            f"model.path: {reasoner!r} follows the interpreter's error in {found.followed:.2f} of {found.failed} retries, expected at "
            f"least {LEAST}: its teacher would have nothing to say of a failure. Make one that does: onpolicy lab learn_interpreter"
        )


def answers(sampler: Sampler, prompts: Sequence[Prompt], each: int = 4) -> list[tuple[Prompt, str]]:
    """Every prompt with each of its answers, which are as long as in configs/lab/interpreter.yaml."""
    searched = any(prompt.fields["data_source"] in SEARCHES for prompt in prompts)
    sampling = Sampling(group_size=each, max_tokens=160 if searched else 48)
    groups = sampler.generate(prompts, seed=0, sampling=sampling)
    return [(prompt, r.text) for prompt, group in zip(prompts, groups, strict=True) for r in group.rollouts]


def accuracy(sampler: Sampler, prompts: Sequence[Prompt]) -> float:
    return fmean(exact_answer(text, prompt.fields["answer"]) for prompt, text in answers(sampler, prompts))
