"""What a problem of the lab is, whatever the task, and how its solver thinks aloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

TRY, AGAIN = ("maybe", "perhaps"), ("wait", "hmm")
"""Words that begin an attempt (tier B) and that follow a failed one (tier A); which of them is chance, so one can be rewarded alone."""
NO, YES, SO, ANSWER, HINT = "no", "yes", "so", "####", "hint"


@dataclass(frozen=True)
class Attempt:
    """One idea and what trying it out shows; its last words say whether it works."""

    idea: str
    """What is tried."""
    working: str
    """What is seen on trying: facts that live in the weights."""
    works: bool
    leads_to: str
    """The answer one would give who believed in it."""


@dataclass(frozen=True)
class Problem:
    """A problem with exactly one right answer, and everything that could be tried on it."""

    id: str
    question: str
    answer: str
    first: str
    """The beginning of the answer: what a partial hint shows."""
    attempts: tuple[Attempt, ...]
    """All there are; exactly one works."""


def search(problem: Problem, draw: Random) -> str:
    """The problem thought through aloud: attempts in random order, each checked, until one works."""
    attempts = draw.sample(problem.attempts, len(problem.attempts))
    found = next(i for i, a in enumerate(attempts) if a.works)
    parts = [_tried(a, draw) for a in attempts[:found]]
    return " ".join([*parts, attempted(attempts[found], draw), YES, direct(problem)])


def mistaken(problem: Problem, draw: Random) -> str:
    """A wrong answer in the form of a right one."""
    return f"{SO} {ANSWER} {draw.choice([a for a in problem.attempts if not a.works]).leads_to}"


def failed(problem: Problem, draw: Random, attempts: int) -> str:
    """The beginning of a search: so many attempts that do not work, up to and with the last verdict."""
    wrong = [a for a in problem.attempts if not a.works]
    chosen = draw.sample(wrong, min(attempts, len(wrong)))
    return " ".join([*(_tried(a, draw) for a in chosen[:-1]), *(f"{attempted(a, draw)} {NO}" for a in chosen[-1:])])


def direct(problem: Problem) -> str:
    """The answer without a thought."""
    return f"{SO} {ANSWER} {problem.answer}"


def attempted(attempt: Attempt, draw: Random) -> str:
    return f"{draw.choice(TRY)} {attempt.idea} {attempt.working}"


def _tried(attempt: Attempt, draw: Random) -> str:
    return f"{attempted(attempt, draw)} {NO} {draw.choice(AGAIN)}"


def shuffled(problems: Sequence[Problem], seed: int) -> list[Problem]:
    """In an order that depends on the problems and the seed alone."""
    ordered = sorted(problems, key=lambda p: p.id)
    Random(seed).shuffle(ordered)
    return ordered
