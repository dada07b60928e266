"""Teaches the shipped reasoner the interpreter's task beside its searches: next-token training on both, from the reasoner's weights.

*Planted* here: a run is carried out step by step, and one step in eight comes out one too high or too low, so that there is something to
learn; what a program prints, shown in the prompt, is given at once, also after some steps; an interpreter's error puts the step that it
names right and leaves the manner of answering as it was. Not planted: what the reasoner does where both are shown, and anything about a
student that learns from it. Three examples in ten are the reasoner's own. Programs that the lab trains or tests on are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch

from onpolicy.experiments.lab.interpreter import (
    MODULUS,
    Program,
    after,
    answered,
    first_error,
    instructions,
    printed,
    trace,
)
from onpolicy.experiments.lab.pretrain import Example, Recipe, search_example, train_reasoner
from onpolicy.experiments.lab.problem import HINT
from onpolicy.experiments.lab.sets import program_families
from onpolicy.experiments.lab.words import vocabulary_with_programs, write_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLIP = 0.125
"""Share of the steps that come out one too high or too low."""
SEARCHES = 0.3
"""Share of the examples that are searches, the reasoner's own."""
RECIPE = Recipe(steps=650, lr=1e-3)
"""How the shipped reasoner is trained on."""


def mixed_example(draw: Random) -> Example:
    """A search or a program."""
    if draw.random() < SEARCHES:
        return search_example(draw)
    program = draw.choice(program_families()[draw.choice(list(program_families()))].pretrain)
    return program_example(program, draw)


def program_example(program: Program, draw: Random) -> Example:
    """An example of one program."""
    kind = draw.random()
    if kind < 0.6:
        return program.question, "", answered(program, executed(program, draw))
    if kind < 0.8:
        given = program.values
        begun = executed(program, draw)[: draw.randint(0, len(given))]
        hint = printed(program) if draw.random() < 0.5 else answered(program, given)
        return f"{program.question} {HINT} {hint}", trace(program, begun), printed(program)
    wrong = executed(program, draw)
    while wrong == program.values:
        wrong = executed(program, draw)
    step = next(i for i, (a, b) in enumerate(zip(wrong, program.values, strict=True), start=1) if a != b)
    error = first_error(program, answered(program, wrong))
    return f"{program.question} {HINT} {error}", "", answered(program, executed(program, draw, known=step))


def executed(program: Program, draw: Random, known: int = 0) -> tuple[int, ...]:
    """A run with the reasoner's slips: the number after each step; none within the first ``known``."""
    value, steps = instructions(program)
    values = list(program.values[:known])
    value = values[-1] if values else value
    for step in steps[known:]:
        slip = draw.choice((-1, 1)) if draw.random() < SLIP else 0
        value = (after(value, step) + slip) % MODULUS
        values.append(value)
    return tuple(values)


def enlarged(folder: str, words: Sequence[str], seed: int) -> PreTrainedModel:
    """The reasoner in float32, with an embedding for each of the words."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.resize_token_embeddings(len(words))
    return model


def learn_interpreter(reasoner: str, folder: Path, recipe: Recipe, report: Callable[[int, float], None]) -> None:
    """Trains the reasoner on both tasks and writes it, in bfloat16, with its tokenizer."""
    words = vocabulary_with_programs()
    model = enlarged(reasoner, words, recipe.seed)
    train_reasoner(model, recipe, report, mixed_example, words)
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder, words)
