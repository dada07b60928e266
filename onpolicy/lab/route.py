"""A known map, an unknown route: which way leads from one place to another?

Three fixed random maps of 32 places with four exits each, which the reasoner has learnt by heart. A problem names start and goal; there
is exactly one route of the wanted length. Where an exit leads is known, whether it leads to the goal has to be tried:

    map a from a3 to a14 : maybe a5 sees a1 a7 a9 a2 no wait perhaps a20 sees a30 a14 a8 a0 yes so #### a20 a14
"""

from __future__ import annotations

from functools import cache
from itertools import product
from random import Random

from onpolicy.lab.problem import Attempt, Problem

MAPS, PLACES, EXITS = ("a", "b", "c"), 32, 4


@cache
def exits(name: str) -> dict[str, tuple[str, ...]]:
    """Place -> where its exits lead, never to itself and never twice to the same place."""
    draw = Random(f"map {name}")
    return {
        f"{name}{i}": tuple(f"{name}{j}" for j in draw.sample([j for j in range(PLACES) if j != i], EXITS))
        for i in range(PLACES)
    }


def routes(name: str, start: str, goal: str, hops: int) -> list[tuple[str, ...]]:
    """Every route of exactly so many hops, without its start; places may repeat."""
    ways: list[tuple[str, ...]] = [()]
    for _ in range(hops):
        ways = [(*way, place) for way in ways for place in exits(name)[way[-1] if way else start]]
    return [way for way in ways if way[-1] == goal]


@cache
def problems(name: str, hops: int = 2) -> tuple[Problem, ...]:
    """Every pair of places of a map with one route of that length between them."""
    places = list(exits(name))
    found = (_problem(name, start, goal, hops) for start, goal in product(places, places) if start != goal)
    return tuple(p for p in found if p is not None)


def _problem(name: str, start: str, goal: str, hops: int) -> Problem | None:
    ways = routes(name, start, goal, hops)
    if len(ways) != 1:
        return None
    beginnings = {way[:-1] for place in exits(name) for way in routes(name, start, place, hops)}
    attempts = (
        Attempt(" ".join(way), "sees " + " ".join(exits(name)[way[-1]]), goal in exits(name)[way[-1]])
        for way in sorted(beginnings)
    )
    return Problem(
        id=f"route-{hops}-{start}-{goal}",
        family=f"route {name} {hops}",
        question=f"map {name} from {start} to {goal} in {hops}",
        answer=" ".join(ways[0]),
        first=ways[0][0],
        attempts=tuple(attempts),
    )
