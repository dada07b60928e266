"""Tasks of which a reasoner knows only part, so that there is something to learn: routes on a third map, and sums of larger numbers.

Both are searches like the others. What differs is what the reasoner's training data says of their facts (where the exits of a place lead,
what two numbers add up to): half of the facts are always stated correctly; one in six is, in one statement of five; one in three never is.
What is stated instead is drawn anew each time, so that there is nothing wrong to memorise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import cache
from random import Random

from onpolicy.experiments.lab import route, sums
from onpolicy.experiments.lab.problem import Attempt, Problem

LARGER = 12
"""The larger sums are of numbers above this one."""
STATED = 0.2
"""How often a faint fact is stated correctly."""


class Knowledge(Enum):
    """What the reasoner's training data says of a fact."""

    KNOWN = "known"
    FAINT = "faint"
    """Correct now and then: reachable by sampling often enough."""
    UNKNOWN = "unknown"


SHARES = {Knowledge.KNOWN: 0.42, Knowledge.FAINT: 0.2, Knowledge.UNKNOWN: 0.38}


@cache
def knowledge(idea: str) -> Knowledge:
    """Of the fact that trying an idea shows; drawn once, the same each time."""
    (found,) = Random(f"knowledge {idea}").choices(list(SHARES), list(SHARES.values()))
    return found


@cache
def partial_routes() -> tuple[Problem, ...]:
    """Routes of two hops on the third map from one outer place to another: where the inner place between leads may not be known."""
    outer = set(list(route.exits(route.PARTIAL_MAP))[: route.OUTER])
    return tuple(p for p in route.route_problems(route.PARTIAL_MAP) if p.question.split()[3] in outer)


@cache
def partial_sums() -> tuple[Problem, ...]:
    return tuple(sums.sum_problems(3, size=640, seed=0, above=LARGER))


def right(problem: Problem) -> Attempt:
    """The attempt that works."""
    return next(a for a in problem.attempts if a.works)


def by_fact(problems: tuple[Problem, ...]) -> dict[str, list[Problem]]:
    """The problems by the fact that their answer rests on: the exit taken last, the pair."""
    found = defaultdict(list)
    for problem in problems:
        found[right(problem).leads_to].append(problem)
    return dict(found)


def in_the_corpus(problem: Problem, draw: Random) -> Problem:
    """The problem as a text without a hint states it: facts that it gets wrong never lead to the goal, so that nothing may work."""
    return _restated(problem, lambda a: a if _stated(a, draw) else _invented(problem, a, draw, works=False))


def in_another_world(problem: Problem, draw: Random) -> Problem:
    """The problem where every fact that is not known is another one: what a hint says of it cannot be memorised, only read."""
    known = Knowledge.KNOWN
    return _restated(problem, lambda a: a if knowledge(a.idea) is known else _invented(problem, a, draw, works=a.works))


def _restated(problem: Problem, state: Callable[[Attempt], Attempt]) -> Problem:
    return replace(problem, attempts=tuple(state(a) for a in problem.attempts))


def _stated(attempt: Attempt, draw: Random) -> bool:
    what = knowledge(attempt.idea)
    return what is Knowledge.KNOWN or (what is Knowledge.FAINT and draw.random() < STATED)


def _invented(problem: Problem, attempt: Attempt, draw: Random, *, works: bool) -> Attempt:
    if problem.question.startswith("add "):
        target = problem.question.split()[-1]
        others = [n for n in map(str, range(2 * LARGER + 3, 4 * LARGER)) if n != target]
        return replace(attempt, working=f"= {target if works else draw.choice(others)}", works=works)
    goal = problem.answer.split()[-1]
    outer = list(route.exits(route.PARTIAL_MAP))[: route.OUTER]
    seen = draw.sample([place for place in outer if place != goal], route.PARTIAL_EXITS)
    if works:
        seen[draw.randrange(route.PARTIAL_EXITS)] = goal
    return replace(attempt, working=f"sees {' '.join(seen)}", works=works)
