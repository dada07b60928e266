"""A problem of the lab, whatever the task, and how its solver thinks aloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

TRY, AGAIN = ("maybe", "perhaps"), ("wait", "hmm")
"""Words that begin an attempt (tier B) and words that follow a failed one (tier A); which of the two is used is random, so that one
can be rewarded alone."""
NO, YES, SO, ANSWER, HINT = "no", "yes", "so", "####", "hint"


@dataclass(frozen=True)
class Attempt:
    """One idea and what trying it shows."""

    idea: str
    """What is tried."""
    working: str
    """What trying it shows: facts that the model has memorised."""
    works: bool
    leads_to: str
    """The answer it would lead to."""


@dataclass(frozen=True)
class Problem:
    """A problem with exactly one correct answer, and everything that can be tried on it."""

    id: str
    question: str
    answer: str
    first: str
    """The beginning of the answer, which a partial hint shows."""
    attempts: tuple[Attempt, ...]
    """All possible attempts; exactly one works."""


def search(problem: Problem, draw: Random) -> str:
    """The problem thought through aloud: attempts in random order, each checked, until one works."""
    attempts = draw.sample(problem.attempts, len(problem.attempts))
    found = next(i for i, a in enumerate(attempts) if a.works)
    parts = [_tried(a, draw) for a in attempts[:found]]
    return " ".join([*parts, attempted(attempts[found], draw), YES, direct(problem)])


def mistaken(problem: Problem, draw: Random) -> str:
    """A wrong answer in the form of a correct one."""
    return f"{SO} {ANSWER} {draw.choice([a for a in problem.attempts if not a.works]).leads_to}"


def failed(problem: Problem, draw: Random, attempts: int) -> str:
    """The beginning of a search: this many attempts that do not work, up to and including the last verdict."""
    wrong = [a for a in problem.attempts if not a.works]
    chosen = draw.sample(wrong, min(attempts, len(wrong)))
    return " ".join([*(_tried(a, draw) for a in chosen[:-1]), *(f"{attempted(a, draw)} {NO}" for a in chosen[-1:])])


def direct(problem: Problem) -> str:
    """The answer without a search."""
    return f"{SO} {ANSWER} {problem.answer}"


def attempted(attempt: Attempt, draw: Random) -> str:
    return f"{draw.choice(TRY)} {attempt.idea} {attempt.working}"


def _tried(attempt: Attempt, draw: Random) -> str:
    return f"{attempted(attempt, draw)} {NO} {draw.choice(AGAIN)}"


class _Named(Protocol):
    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=_Named)


def in_random_order(problems: Sequence[N], seed: int) -> list[N]:
    """The problems in an order that depends only on them and the seed."""
    ordered = sorted(problems, key=lambda p: p.id)
    Random(seed).shuffle(ordered)
    return ordered
