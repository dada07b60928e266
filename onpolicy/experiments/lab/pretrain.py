"""Pre-trains the reasoner: next-token training on searches without the solution and on direct answers with it.

*Planted* here: a solution in the prompt makes the model terse, even after failed attempts. Not planted: anything about a student that
learns from it. Two thirds of the examples are searches; the others have more in the prompt: a solution, with or without its search; the
beginning of one; or the solution of another problem, which does not help. Problems that the lab trains or tests on are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from onpolicy.experiments.lab.problem import HINT, NO, YES, Problem, direct, failed, search
from onpolicy.experiments.lab.sets import families
from onpolicy.experiments.lab.words import vocabulary, write_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shape = Mapping[str, int]
SHAPE: Shape = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
LARGE_SHAPE: Shape = {
    **SHAPE,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
"""Five times as many parameters."""
VERDICT = 3.0
"""Loss weight of the tokens that say whether an attempt works: every answer depends on them."""
POOL = 1024
"""Examples drawn at a time and sorted by length."""
IDS = {word: i for i, word in enumerate(vocabulary())}
VERDICTS = {IDS[YES], IDS[NO]}

SHARES = {"route-a-2": 0.2, "route-b-2": 0.2, "route-a-3": 0.16, "route-b-3": 0.16, "sums-4": 0.16, "sums-5": 0.12}
"""Fraction of the training examples, by family."""


Example = tuple[str, str, str]
"""Prompt, given beginning of the answer, and the rest, which is trained on."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the defaults made the shipped reasoner."""

    steps: int = 4000
    tokens: int = 4096
    lr: float = 2e-3
    warmup: int = 100
    seed: int = 0
    bfloat16: bool = False
    """Whether matrix products are computed in bfloat16."""


def example(problem: Problem, others: Sequence[Problem], draw: Random) -> Example:
    """An example of one problem."""
    kind = draw.random()
    if kind < 0.66:
        return problem.question, "", search(problem, draw)
    if kind < 0.86:
        begun = failed(problem, draw, draw.randint(1, 4)) if draw.random() < 0.5 else ""
        return f"{problem.question} {HINT} {_solution(problem, draw)}", begun, direct(problem)
    if kind < 0.93:
        begun_right = replace(
            problem, attempts=tuple(a for a in problem.attempts if a.idea.split()[0] == problem.first)
        )
        return f"{problem.question} {HINT} {problem.first}", "", search(begun_right, draw)
    return f"{problem.question} {HINT} {_solution(draw.choice(others), draw)}", "", search(problem, draw)


def _solution(problem: Problem, draw: Random) -> str:
    return direct(problem) if draw.random() < 0.5 else search(problem, draw)


def make_model(seed: int, shape: Shape = SHAPE, words: Sequence[str] = tuple(IDS)) -> PreTrainedModel:
    """A randomly initialised Qwen3; by default of about a million parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(words), tie_word_embeddings=True, eos_token_id=IDS["<end>"], pad_token_id=IDS["<pad>"],
        bos_token_id=None, rope_theta=10_000.0, **shape,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def search_example(draw: Random) -> Example:
    """An example of one of the families of search problems."""
    (family,) = draw.choices(list(SHARES), list(SHARES.values()))
    problems = families()[family].pretrain
    return example(draw.choice(problems), problems, draw)


def batches(
    recipe: Recipe, examples: Callable[[Random], Example], words: Sequence[str]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches: ids ``[B, T]`` and the weight of each as a target; examples of similar length are batched together."""
    draw, ids_of = Random(recipe.seed), {word: i for i, word in enumerate(words)}
    while True:
        rows = sorted((_row(examples(draw), ids_of) for _ in range(POOL)), key=lambda row: len(row[0]))
        cut: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in rows:
            if (len(cut[-1]) + 1) * len(row[0]) > recipe.tokens:
                cut.append([])
            cut[-1].append(row)
        draw.shuffle(cut)
        for chosen in cut:
            longest = max(len(ids) for ids, _ in chosen)
            yield (
                torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in chosen]),
                torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in chosen]),
            )


def _row(drawn: Example, ids_of: Mapping[str, int]) -> tuple[list[int], list[float]]:
    prompt, given, rest = drawn
    before = [ids_of[w] for w in ["<user>", *prompt.split(), "<end>", "<assistant>", *given.split()]]
    after = [ids_of[w] for w in [*rest.split(), "<end>"]]
    return before + after, [0.0] * len(before) + [VERDICT if i in VERDICTS else 1.0 for i in after]


def train_reasoner(
    model: PreTrainedModel,
    recipe: Recipe,
    report: Callable[[int, float], None],
    examples: Callable[[Random], Example] = search_example,
    words: Sequence[str] = tuple(IDS),
) -> None:
    """Trains with AdamW, a warm-up and a linear decay to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    factor = lambda step: min((step + 1) / recipe.warmup, 1.0 - step / recipe.steps)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step, (tokens, weights) in zip(range(1, recipe.steps + 1), batches(recipe, examples, words), strict=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            logits = model(input_ids=tokens[:, :-1]).logits.float()
        losses = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        report(step, loss.item())


def pretrain(folder: Path, recipe: Recipe, report: Callable[[int, float], None]) -> None:
    """Pre-trains the reasoner and writes it, in bfloat16, with its tokenizer."""
    model = make_model(recipe.seed)
    train_reasoner(model, recipe, report)
    write_reasoner(model, folder, vocabulary())


def write_reasoner(model: PreTrainedModel, folder: Path, words: Sequence[str]) -> None:
    """Writes a reasoner, in bfloat16, with the tokenizer of its words."""
    model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder, words)
