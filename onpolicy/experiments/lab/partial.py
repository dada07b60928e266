"""Tasks of which a reasoner knows only part, so that there is something to learn: routes on a third map, and sums of larger numbers.

Both are searches like the others. What differs is what the reasoner's training data says of their facts (where the exits of a place lead,
what two numbers add up to): some are always stated correctly; some in one statement of five; some never. What is stated instead is always
the same, a misconception.
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


SHARES = {Knowledge.KNOWN: 0.56, Knowledge.FAINT: 0.22, Knowledge.UNKNOWN: 0.22}


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
    """The problem as a text without a hint states it, misconceptions included. They never lead to the goal, so nothing may work."""
    return _restated(problem, lambda a: a if _stated(a, draw) else _misconceived(problem, a))


def in_another_world(problem: Problem, draw: Random) -> Problem:
    """The problem where every fact that is not known is another one: what a hint says of it cannot be memorised, only read."""
    known = Knowledge.KNOWN
    return _restated(problem, lambda a: a if knowledge(a.idea) is known else _elsewhere(problem, a, draw))


def _restated(problem: Problem, state: Callable[[Attempt], Attempt]) -> Problem:
    return replace(problem, attempts=tuple(state(a) for a in problem.attempts))


def _stated(attempt: Attempt, draw: Random) -> bool:
    what = knowledge(attempt.idea)
    return what is Knowledge.KNOWN or (what is Knowledge.FAINT and draw.random() < STATED)


def _misconceived(problem: Problem, attempt: Attempt) -> Attempt:
    """What is stated of an attempt instead of what is true: the same for each problem but those where it would lead to the goal."""
    draw, goal = Random(f"misconception {attempt.idea}"), _goal(problem)
    told = _invented(problem, attempt, draw, avoided=attempt.working)
    while goal in told.working.split():
        told = _invented(problem, attempt, draw, avoided=attempt.working)
    return replace(told, works=False)


def _invented(problem: Problem, attempt: Attempt, draw: Random, avoided: str) -> Attempt:
    """A working drawn at random, with nothing of what is to be avoided."""
    avoid = avoided.split()
    if problem.question.startswith("add "):
        others = [n for n in map(str, range(2 * LARGER + 3, 4 * LARGER)) if n not in avoid]
        return replace(attempt, working=f"= {draw.choice(others)}")
    outer = list(route.exits(route.PARTIAL_MAP))[: route.OUTER]
    seen = draw.sample([place for place in outer if place not in avoid], route.PARTIAL_EXITS)
    return replace(attempt, working=f"sees {' '.join(seen)}")


def _goal(problem: Problem) -> str:
    """What an attempt has to show: the target of a sum, the last place of a route."""
    return problem.question.split()[-1] if problem.question.startswith("add ") else problem.answer.split()[-1]


def _elsewhere(problem: Problem, attempt: Attempt, draw: Random) -> Attempt:
    """Another fact in the place of this one; it works where this one works."""
    goal, told = _goal(problem), _invented(problem, attempt, draw, avoided=_goal(problem))
    first, *shown = told.working.split()
    if attempt.works:
        shown[draw.randrange(len(shown))] = goal
    return replace(told, working=" ".join([first, *shown]))
