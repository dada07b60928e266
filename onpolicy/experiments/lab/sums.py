"""Which two of these numbers add up to the target?

add 3 5 8 11 to 16 : maybe 3 + 8 = 11 no hmm perhaps 5 + 11 = 16 yes so #### 5 + 11
"""

from __future__ import annotations

from itertools import combinations
from random import Random

from onpolicy.experiments.lab.problem import Attempt, Problem

LARGEST = 12


def sum_problems(count: int, *, size: int, seed: int, above: int = 0) -> list[Problem]:
    """``size`` different problems with one correct pair each.

    Args:
        count: numbers to choose from
        size: how many problems
        seed: same seed, same problems
        above: the twelve numbers above this one are added
    """
    draw = Random(f"sums {count} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < size:
        numbers = sorted(draw.sample(range(above + 1, above + LARGEST + 1), count))
        target = sum(draw.sample(numbers, 2))
        pairs = [pair for pair in combinations(numbers, 2) if sum(pair) == target]
        if len(pairs) == 1:
            problem = _problem(numbers, target)
            found.setdefault(problem.id, problem)
    return list(found.values())


def _problem(numbers: list[int], target: int) -> Problem:
    attempts = tuple(
        Attempt(f"{a} + {b}", f"= {a + b}", a + b == target, leads_to=f"{a} + {b}") for a, b in combinations(numbers, 2)
    )
    (right,) = (a for a in attempts if a.works)
    return Problem(
        id=f"sums-{'-'.join(map(str, numbers))}-{target}",
        question=f"add {' '.join(map(str, numbers))} to {target}",
        answer=right.idea,
        first=right.idea.split()[0],
        attempts=attempts,
    )
