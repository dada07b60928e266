"""Problems of a wanted difficulty, with the model's own answers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from onpolicy.annotation.scoring import Scorer
from onpolicy.protocols import Generator
from onpolicy.run.evaluate import AT_ONCE
from onpolicy.types import CORRECT_THRESHOLD, Prompt, ScoredGroup

Band = tuple[float, float]
EVERYTHING: Band = (0.0, 1.0)


def within_band(
    prompts: Sequence[Prompt],
    *,
    generator: Generator,
    scorer: Scorer,
    band: Band,
    problems: int,
    seed: int,
    note: Callable[[str], None],
) -> Iterator[ScoredGroup]:
    """Goes through the dataset in order until so many problems are found, or it ends.

    Args:
        prompts: the dataset
        generator: answers each problem ``group_size`` times
        scorer: says which answers are correct
        band: only problems whose share of right answers lies within
        problems: how many are wanted
        seed: of all samples
        note: told how far it is
    """
    found, tried = 0, 0
    while found < problems and tried < len(prompts):
        step = max(1, min(AT_ONCE // generator.sampling.group_size, _guess(found, tried, problems)))
        for judged in scorer.score(generator.generate(prompts[tried : tried + step], seed=seed)):
            if band[0] <= solved(judged) <= band[1] and found < problems:
                found += 1
                yield judged
        tried = min(tried + step, len(prompts))
        if band != EVERYTHING:
            note(f"{found} of {problems} problems within {band[0]:g} to {band[1]:g}, after {tried} of {len(prompts)}")


def solved(judged: ScoredGroup) -> float:
    """Share of right answers."""
    return fmean(score >= CORRECT_THRESHOLD for score in judged.scores)


def _guess(found: int, tried: int, problems: int) -> int:
    """How many more have to be tried, by what has been found so far."""
    share = max(found, 1) / tried if tried else 1.0
    return round((problems - found) / share) or 1
