"""Teaches the shipped reasoner part of two more tasks: next-token training on them and on its own tasks, from its weights.

*Planted* here, besides what the reasoner brings: which facts are stated correctly (partial.py); a search that ends without an answer once
everything was tried and nothing worked; and that what a solution in the prompt says is read from it, in the middle of a search too: the
idea that works, and facts. Under a hint each example has other facts where they are not known, so that nothing but the hint tells them. Not
planted: anything about a student that learns from it. Three examples in ten are the reasoner's own. Problems that the lab trains or tests
on are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from onpolicy.experiments.lab.learn_interpreter import enlarged
from onpolicy.experiments.lab.partial import in_another_world, in_the_corpus, right
from onpolicy.experiments.lab.pretrain import (
    LARGE_SHAPE,
    Example,
    Recipe,
    make_model,
    search_example,
    train_reasoner,
    write_reasoner,
)
from onpolicy.experiments.lab.problem import AGAIN, HINT, NO, TRY, YES, Problem, direct, failed, search
from onpolicy.experiments.lab.sets import partial_families
from onpolicy.experiments.lab.words import vocabulary_with_partial
from onpolicy.models import load_causal_lm

OWN = 0.3
"""Share of the examples that are of the reasoner's own tasks."""
OWN_FROM_SCRATCH = 0.5
"""The same, of a reasoner that does not know them yet."""
FAMILIES = {"route-c-2": 0.8, "sums-3-large": 0.2}
RECIPE = Recipe(steps=3000, lr=2e-3)
LARGE_RECIPE = Recipe(steps=3200, lr=1.5e-3, bfloat16=True)
LARGE_ROUNDS = (LARGE_RECIPE, replace(LARGE_RECIPE, seed=1), replace(LARGE_RECIPE, steps=1600, lr=1e-3, seed=2))
"""Of the reasoner of five times the size, one after the other, on other examples each."""


def mixed_partial_example(draw: Random, own: float = OWN) -> Example:
    """An example of the reasoner's own tasks or of those that it is to know part of."""
    if draw.random() < own:
        return search_example(draw)
    (family,) = draw.choices(list(FAMILIES), list(FAMILIES.values()))
    return partial_example(partial_families()[family].pretrain, draw)


def partial_example(problems: Sequence[Problem], draw: Random) -> Example:
    """An example of one of a family's problems."""
    problem, kind = draw.choice(problems), draw.random()
    if kind < 0.5:
        return problem.question, "", searched(problem, draw)
    if kind < 0.93:
        hint, begun, rest = under_hint(in_another_world(problem, draw), draw)
        return f"{problem.question} {HINT} {hint}", begun, rest
    others = [p for p in problems if p.answer != problem.answer]
    other = in_another_world(draw.choice(others), draw)
    return f"{problem.question} {HINT} {_solution(other, draw)}", "", searched(problem, draw)


def searched(problem: Problem, draw: Random) -> str:
    """A search with what the reasoner knows; it ends with the last verdict where nothing worked."""
    stated = in_the_corpus(problem, draw)
    if any(a.works for a in stated.attempts):
        return search(stated, draw)
    return failed(stated, draw, len(stated.attempts))


def under_hint(problem: Problem, draw: Random) -> tuple[str, str, str]:
    """The solution shown; a beginning; and what follows: what was begun is ended as the solution says, then the answer is given."""
    kind = draw.random()
    if kind < 0.25:
        return _solution(problem, draw), "", direct(problem)
    if kind < 0.4:
        return _solution(problem, draw), failed(problem, draw, draw.randint(1, 4)), direct(problem)
    hint = search(problem, draw)
    shown = [a for a in problem.attempts if f"{a.idea} {a.working}" in hint]
    attempt = right(problem) if draw.random() < 0.7 else draw.choice(shown)
    words, idea = [*attempt.idea.split(), *attempt.working.split()], len(attempt.idea.split())
    given = draw.randrange(0 if attempt.works else idea, len(words))  # nothing that fails is proposed
    before = [failed(problem, draw, draw.randint(1, 4)), draw.choice(AGAIN)] if draw.random() < 0.5 else []
    begun = " ".join([*before, draw.choice(TRY), *words[:given]])
    return hint, begun, " ".join([*words[given:], YES if attempt.works else NO, direct(problem)])


def _solution(problem: Problem, draw: Random) -> str:
    return search(problem, draw) if draw.random() < 0.7 else direct(problem)


def pretrain_large(folder: Path, recipe: Recipe, report: Callable[[int, float], None]) -> None:
    """Pre-trains a reasoner of five times the size on all tasks at once, from the weights in the folder if it has some, and writes it,
    in bfloat16, with its tokenizer."""
    words, begun = vocabulary_with_partial(), (folder / "config.json").is_file()
    model = load_causal_lm(str(folder)) if begun else make_model(recipe.seed, LARGE_SHAPE, words)
    train_reasoner(model, recipe, report, partial(mixed_partial_example, own=OWN_FROM_SCRATCH), words)
    write_reasoner(model, folder, words)


def learn_partial(reasoner: str, folder: Path, recipe: Recipe, report: Callable[[int, float], None]) -> None:
    """Trains the reasoner on all tasks and writes it, in bfloat16, with its tokenizer."""
    words = vocabulary_with_partial()
    model = enlarged(
        reasoner, words, recipe.seed, apart=False
    )  # places behave alike: apart, verdicts are learned more slowly
    train_reasoner(model, recipe, report, mixed_partial_example, words)
    write_reasoner(model, folder, words)
