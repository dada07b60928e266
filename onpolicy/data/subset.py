"""How many different problems are trained on: the coverage axis (arXiv 2603.24472, section 6)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from onpolicy.data.errors import DataError
from onpolicy.data.rows import FreeNames
from onpolicy.types import Prompt


def coverage(
    prompts: Sequence[Prompt],
    *,
    problems: int | None,
    repeats: int | None = None,
    seed: int = 0,
    key: str = "data.coverage",
) -> list[Prompt]:
    """A random subset, each problem ``repeats`` times.

    Subsets with one seed are nested: those chosen for 8 are among those chosen for 64. Copies get ids ``<id>#k``;
    ``fields["problem_id"]`` says which problem they are.

    Raises:
        DataError: more problems are asked for than there are.
    """
    if problems is not None and not 1 <= problems <= len(prompts):
        raise DataError(f"{key}.problems: got {problems}, but the dataset has {len(prompts)}")
    if repeats is not None and repeats < 1:
        raise DataError(f"{key}.repeats: got {repeats}, expected at least 1")
    chosen = list(prompts)
    if problems is not None:
        order = list(range(len(prompts)))
        random.Random(seed).shuffle(order)
        chosen = [prompts[i] for i in order[:problems]]
    names = FreeNames(prompt.id for prompt in chosen)
    copies = [replace(prompt, id=names.after(prompt.id)) for _ in range((repeats or 1) - 1) for prompt in chosen]
    return [_of_problem(prompt, chosen[i % len(chosen)].id) for i, prompt in enumerate([*chosen, *copies])]


def _of_problem(prompt: Prompt, problem: str) -> Prompt:
    return replace(prompt, fields={**prompt.fields, "problem_id": prompt.fields.get("problem_id", problem)})
