"""Teaches the shipped reasoner the interpreter's task beside its searches: next-token training on both, from the reasoner's weights.

*Planted* here: a run is carried out step by step, and one step in eight comes out one too high or too low, so that there is something to
learn; what a program prints, shown in the prompt, is given at once, also after some steps; an interpreter's error puts the step that it
names right, and those before it, and leaves slips behind it and the manner of answering as they were. Not planted: what the reasoner does
where both are shown, and anything about a student that learns from it. Of the examples 45 % are searches, the reasoner's own; of those of
programs 35 % show nothing, 20 % the answer, 45 % an error. Programs that the lab trains or tests on are left out.
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
from onpolicy.experiments.lab.pretrain import Example, Recipe, search_example, train_reasoner, write_reasoner
from onpolicy.experiments.lab.problem import HINT
from onpolicy.experiments.lab.sets import program_families
from onpolicy.experiments.lab.words import vocabulary_with_programs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLIP = 0.125
"""Share of the steps that come out one too high or too low."""
SEARCHES = 0.45
"""Share of the examples that are searches, the reasoner's own."""
RECIPE = Recipe(steps=2400, tokens=2048, lr=1.5e-3)
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
    if kind < 0.35:
        return program.question, "", answered(program, executed(program, draw))
    if kind < 0.55:
        given = program.values
        begun = executed(program, draw)[: draw.randint(0, len(given))]
        hint = printed(program) if draw.random() < 0.5 else answered(program, given)
        return f"{program.question} {HINT} {hint}", trace(program, begun), printed(program)
    step = draw.randint(1, len(program.values))
    wrong = (program.values[step - 1] + draw.choice((-1, 1))) % MODULUS
    error = first_error(program, trace(program, (*program.values[: step - 1], wrong)))
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


def enlarged(folder: str, words: Sequence[str], seed: int, *, apart: bool = True) -> PreTrainedModel:
    """The reasoner in float32, with an embedding for each of the words.

    Args:
        folder: the reasoner
        words: all of them, its own first
        seed: of what is drawn
        apart: whether new words are drawn as wide as the old ones; otherwise they stand near the mean of the old ones, as transformers puts
            them, all but alike, and are told apart only after hundreds of steps
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(len(words), mean_resizing=not apart)
    if apart:
        with torch.no_grad():
            model.get_input_embeddings().weight[len(old) :].normal_(0.0, old.std().item())
    return model


def learn_interpreter(reasoner: str, folder: Path, recipe: Recipe, report: Callable[[int, float], None]) -> None:
    """Trains the reasoner on both tasks and writes it, in bfloat16, with its tokenizer."""
    words = vocabulary_with_programs()
    model = enlarged(reasoner, words, recipe.seed)
    train_reasoner(model, recipe, report, mixed_example, words)
    write_reasoner(model, folder, words)
