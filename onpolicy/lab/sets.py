"""Which problems there are, and which of them are kept for testing. No problem is in two sets."""

from __future__ import annotations

from functools import cache

from onpolicy.lab import route, sums
from onpolicy.lab.problem import Problem, divided

TEST_SHARE = 0.3
SUMS = 2000
"""Problems of each size of the sums, before they are divided."""


@cache
def families() -> dict[str, tuple[tuple[Problem, ...], tuple[Problem, ...]]]:
    """Family -> problems for training, problems for testing."""
    everything = {f"route-{name}-{hops}": route.problems(name, hops) for hops in (2, 3) for name in route.MAPS}
    everything |= {f"sums-{count}": tuple(sums.problems(count, size=SUMS, seed=0)) for count in (4, 5)}
    halves = {name: divided(problems, TEST_SHARE, seed=0) for name, problems in everything.items()}
    return {name: (tuple(train), tuple(test)) for name, (train, test) in halves.items()}


@cache
def pretraining_problems() -> dict[str, tuple[Problem, ...]]:
    """What the reasoner is made from: the training halves of all families."""
    return {name: train for name, (train, _) in families().items()}
