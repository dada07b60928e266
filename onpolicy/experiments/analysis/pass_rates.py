"""Problems of a chosen difficulty, with the model's own answers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onpolicy.annotation.scoring import Scorer
from onpolicy.protocols import Generator
from onpolicy.run.evaluate import AT_ONCE
from onpolicy.types import Prompt, ScoredGroup

PassRates = tuple[float, float]
"""The lowest and the highest pass rate that a problem may have."""
ANY_PASS_RATE: PassRates = (0.0, 1.0)


def within_pass_rates(
    prompts: Sequence[Prompt],
    *,
    generator: Generator,
    scorer: Scorer,
    pass_rates: PassRates,
    problems: int,
    seed: int,
    note: Callable[[str], None],
) -> Iterator[ScoredGroup]:
    """Goes through the dataset in order until enough problems are found, or it ends.

    Args:
        prompts: the dataset
        generator: answers each problem ``group_size`` times
        scorer: says which answers are correct
        pass_rates: only problems whose pass rate lies within are kept
        problems: how many to find
        seed: of all samples
        note: told how far it is
    """
    low, high = pass_rates
    found, tried = 0, 0
    while found < problems and tried < len(prompts):
        step = max(1, min(AT_ONCE // generator.sampling.group_size, _guess(found, tried, problems)))
        for scored in scorer.score(generator.generate(prompts[tried : tried + step], seed=seed)):
            if low <= scored.pass_rate <= high and found < problems:
                found += 1
                yield scored
        tried = min(tried + step, len(prompts))
        if pass_rates != ANY_PASS_RATE:
            note(f"{found} of {problems} problems within {low:g} to {high:g}, after {tried} of {len(prompts)}")


def _guess(found: int, tried: int, problems: int) -> int:
    """How many more have to be tried, judging by what has been found so far."""
    share = max(found, 1) / tried if tried else 1.0
    return round((problems - found) / share) or 1
