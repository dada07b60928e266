"""How many different problems are trained on: the coverage axis (arXiv 2603.24472, section 6)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from onpolicy.data.errors import DataError
from onpolicy.types import Prompt


def coverage(
    prompts: Sequence[Prompt], *, problems: int | None, repeats: int | None = None, seed: int = 0
) -> list[Prompt]:
    """A random subset, each problem ``repeats`` times.

    Subsets with one seed are nested: those chosen for 8 are among those chosen for 64. Copies get ids ``<id>#k``;
    ``fields["problem_id"]`` says which problem they are.

    Raises:
        DataError: more problems are asked for than there are.
    """
    if problems is not None and not 1 <= problems <= len(prompts):
        raise DataError(f"data.coverage.problems: got {problems}, but the dataset has {len(prompts)}")
    if repeats is not None and repeats < 1:
        raise DataError(f"data.coverage.repeats: got {repeats}, expected at least 1")
    chosen = list(prompts)
    if problems is not None:
        order = list(range(len(prompts)))
        random.Random(seed).shuffle(order)
        chosen = [prompts[i] for i in order[:problems]]
    return [_copy(prompt, k) for k in range(1, (repeats or 1) + 1) for prompt in chosen]


def _copy(prompt: Prompt, k: int) -> Prompt:
    fields = {**prompt.fields, "problem_id": prompt.fields.get("problem_id", prompt.id)}
    return Prompt(id=prompt.id if k == 1 else f"{prompt.id}#{k}", messages=prompt.messages, fields=fields)
