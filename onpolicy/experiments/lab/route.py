"""A known map, an unknown route: which way leads from one place to another?

Two fixed random maps of 96 places with four exits each, which the reasoner has memorised. On a third, for a reasoner that knows part of it
(partial.py), three exits lead from each of 128 outer places to inner ones, and three from each of 64 inner places to outer ones. A problem
names start and goal; there is exactly one route of the given length. Where an exit leads is known, whether it leads to the goal has to be
tried:

    map a from a3 to a14 : maybe a5 sees a1 a7 a9 a2 no wait perhaps a20 sees a30 a14 a8 a0 yes so #### a20 a14
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from random import Random

from onpolicy.experiments.lab.problem import Attempt, Problem

MAPS, PLACES, EXITS = ("a", "b"), 96, 4
PARTIAL_MAP, OUTER, INNER, PARTIAL_EXITS = "c", 128, 64, 3


@cache
def exits(name: str) -> dict[str, tuple[str, ...]]:
    """Place -> where its exits lead, never to itself and never twice to the same place."""
    draw = Random(f"map {name}")
    if name == PARTIAL_MAP:
        outer, inner = range(OUTER), range(OUTER, OUTER + INNER)
        leads = [*((i, inner) for i in outer), *((i, outer) for i in inner)]
        return {f"{name}{i}": tuple(f"{name}{j}" for j in draw.sample(there, PARTIAL_EXITS)) for i, there in leads}
    return {
        f"{name}{i}": tuple(f"{name}{j}" for j in draw.sample([j for j in range(PLACES) if j != i], EXITS))
        for i in range(PLACES)
    }


def walks(name: str, start: str, hops: int) -> list[tuple[str, ...]]:
    """Every way of exactly ``hops`` hops from a place, without the place itself; places may repeat."""
    ways: list[tuple[str, ...]] = [()]
    for _ in range(hops):
        ways = [(*way, place) for way in ways for place in exits(name)[way[-1] if way else start]]
    return ways


@cache
def route_problems(name: str, hops: int = 2) -> tuple[Problem, ...]:
    """Every pair of places of a map with one route of that length between them."""
    found = []
    for start in exits(name):
        routes = defaultdict(list)
        for way in walks(name, start, hops):
            routes[way[-1]].append(way)
        found += [_problem(name, start, *ways) for goal, ways in routes.items() if len(ways) == 1 and goal != start]
    return tuple(found)


def _problem(name: str, start: str, route: tuple[str, ...]) -> Problem:
    *before, goal = route
    attempts = (
        Attempt(
            idea=" ".join(way),
            working="sees " + " ".join(exits(name)[way[-1]]),
            works=list(way) == before,
            leads_to=" ".join((*way, goal)),
        )
        for way in walks(name, start, len(before))
    )
    return Problem(
        id=f"route-{len(route)}-{start}-{goal}",
        question=f"map {name} from {start} to {goal} in {len(route)}",
        answer=" ".join(route),
        first=route[0],
        attempts=tuple(attempts),
    )
