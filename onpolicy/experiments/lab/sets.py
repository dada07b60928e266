"""All problems, split by what they are for. No problem is in two sets."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from onpolicy.experiments.lab import route, sums
from onpolicy.experiments.lab.problem import Problem, in_random_order

MOST = 2000
"""The most problems of a family."""
SHARES = (0.4, 0.4, 0.2)
"""Fractions of each family for pre-training the reasoner, for training it in the lab, and for testing."""


class FamilySplit(NamedTuple):
    """One family's problems."""

    pretrain: tuple[Problem, ...]
    """The reasoner is pre-trained on these."""
    train: tuple[Problem, ...]
    """New to the reasoner; the lab trains on these."""
    test: tuple[Problem, ...]
    """New to both."""


@cache
def families() -> dict[str, FamilySplit]:
    """Every family, split at random, the same way each time."""
    everything = {f"route-{name}-{hops}": route.route_problems(name, hops) for hops in (2, 3) for name in route.MAPS}
    everything |= {f"sums-{count}": tuple(sums.sum_problems(count, size=MOST, seed=0)) for count in (4, 5)}
    return {name: divided(problems) for name, problems in everything.items()}


def divided(problems: tuple[Problem, ...]) -> FamilySplit:
    chosen = in_random_order(problems, seed=0)[:MOST]
    first, second = (round(len(chosen) * share) for share in (SHARES[0], SHARES[0] + SHARES[1]))
    return FamilySplit(tuple(chosen[:first]), tuple(chosen[first:second]), tuple(chosen[second:]))
