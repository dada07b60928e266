"""Which problems there are, and what each is for. No problem is in two sets."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from onpolicy.experiments.lab import route, sums
from onpolicy.experiments.lab.problem import Problem, shuffled

MOST = 2000
"""Problems of each family."""
SHARES = (0.4, 0.4, 0.2)
"""Of each family: for making the reasoner, for training it further, for testing."""


class Split(NamedTuple):
    """One family's problems."""

    pretrain: tuple[Problem, ...]
    """What the reasoner is made from."""
    train: tuple[Problem, ...]
    """New to the reasoner: what the lab trains on."""
    test: tuple[Problem, ...]
    """New to both."""


@cache
def families() -> dict[str, Split]:
    """Every family, divided by chance, the same way each time."""
    everything = {f"route-{name}-{hops}": route.problems(name, hops) for hops in (2, 3) for name in route.MAPS}
    everything |= {f"sums-{count}": tuple(sums.problems(count, size=MOST, seed=0)) for count in (4, 5)}
    return {name: divided(problems) for name, problems in everything.items()}


def divided(problems: tuple[Problem, ...]) -> Split:
    chosen = shuffled(problems, seed=0)[:MOST]
    first, second = (round(len(chosen) * share) for share in (SHARES[0], SHARES[0] + SHARES[1]))
    return Split(tuple(chosen[:first]), tuple(chosen[first:second]), tuple(chosen[second:]))
