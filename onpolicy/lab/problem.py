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


@dataclass(frozen=True)
class Problem:
    """A problem with exactly one right answer, and everything that could be tried on it."""

    id: str
    family: str
    question: str
    answer: str
    first: str
    """The beginning of the answer: what a partial hint shows."""
    attempts: tuple[Attempt, ...]
    """All there are; exactly one works."""


def search(problem: Problem, draw: Random, *, most: int | None = None) -> str:
    """The problem thought through aloud: attempts in random order, each checked, until one works.

    Args:
        problem: what is to be solved
        draw: decides order and words
        most: at most so many attempts, the one that works among them; None: as many as it takes
    """
    wrong = [a for a in problem.attempts if not a.works]
    draw.shuffle(wrong)
    (right,) = (a for a in problem.attempts if a.works)
    failures = draw.randrange(min(len(wrong) + 1, most or len(problem.attempts)))
    parts = [_tried(a, draw) for a in wrong[:failures]]
    return " ".join([*parts, attempted(right, draw), YES, direct(problem)])


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


def divided(problems: Sequence[Problem], test_share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """The same problems for training and for testing every time, by chance; no problem is in both."""
    shuffled = sorted(problems, key=lambda p: p.id)
    Random(seed).shuffle(shuffled)
    cut = round(len(shuffled) * (1.0 - test_share))
    return shuffled[:cut], shuffled[cut:]
