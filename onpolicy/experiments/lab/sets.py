"""All problems, split by what they are for. No problem is in two sets."""

from __future__ import annotations

from functools import cache
from typing import Generic, NamedTuple, TypeVar

from onpolicy.experiments.lab import interpreter, partial, route, sums
from onpolicy.experiments.lab.interpreter import Program
from onpolicy.experiments.lab.problem import Problem, in_random_order

MOST = 2000
"""The most problems of a family."""
PROGRAM_STEPS, PROGRAMS = (3, 5), 4000
"""Steps of the programs of each family, and how many there are."""
P = TypeVar("P", Problem, Program)
SHARES = (0.4, 0.4, 0.2)
"""Fractions of each family for pre-training the reasoner, for training it in the lab, and for testing."""


class FamilySplit(NamedTuple, Generic[P]):
    """One family's problems."""

    pretrain: tuple[P, ...]
    """The reasoner is pre-trained on these."""
    train: tuple[P, ...]
    """New to the reasoner; the lab trains on these."""
    test: tuple[P, ...]
    """New to both."""


@cache
def families() -> dict[str, FamilySplit[Problem]]:
    """Every family of search problems, split at random, the same way each time."""
    everything = {f"route-{name}-{hops}": route.route_problems(name, hops) for hops in (2, 3) for name in route.MAPS}
    everything |= {f"sums-{count}": tuple(sums.sum_problems(count, size=MOST, seed=0)) for count in (4, 5)}
    return {name: divided(problems) for name, problems in everything.items()}


@cache
def program_families() -> dict[str, FamilySplit[Program]]:
    """Every family of programs, split in the same way; only the reasoner that has learned the interpreter knows them."""
    made = {f"run-{n}": interpreter.programs(n, size=PROGRAMS, seed=0) for n in PROGRAM_STEPS}
    return {name: divided(programs, PROGRAMS) for name, programs in made.items()}


@cache
def partial_families() -> dict[str, FamilySplit[Problem]]:
    """The families of which a reasoner knows part; only the one of ``onpolicy lab learn_partial`` knows them at all.

    A fact that an answer of the test rests on is one that an answer of the training problems rests on, in another problem.
    """
    return {
        "route-c-2": divided_by_fact(partial.partial_routes()),
        "sums-3-large": divided_by_fact(partial.partial_sums()),
    }


def divided_by_fact(problems: tuple[Problem, ...]) -> FamilySplit[Problem]:
    """Among the problems that rest on the same fact, a fifth is for testing, a third for pre-training, the others for training."""
    pretrain: list[Problem] = []
    train: list[Problem] = []
    test: list[Problem] = []
    for same in partial.by_fact(problems).values():
        tested, told = (max(1, len(same) // 5), len(same) // 3) if len(same) > 1 else (0, 1)
        ordered = in_random_order(same, seed=0)
        test += ordered[:tested]
        pretrain += ordered[tested : tested + told]
        train += ordered[tested + told :]
    return FamilySplit(tuple(pretrain), tuple(train), tuple(test))


def divided(problems: tuple[P, ...], most: int = MOST) -> FamilySplit[P]:
    chosen = in_random_order(problems, seed=0)[:most]
    first, second = (round(len(chosen) * share) for share in (SHARES[0], SHARES[0] + SHARES[1]))
    return FamilySplit(tuple(chosen[:first]), tuple(chosen[first:second]), tuple(chosen[second:]))
