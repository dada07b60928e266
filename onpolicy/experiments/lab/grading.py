"""Grades every attempt of an answer exactly, because everything that can be tried on a problem is known.

The functions are rewards that can be logged without training on them: ``{name: "onpolicy.experiments.lab.grading:verdicts", weight: 0}``.
They return None where nothing can be graded.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from onpolicy.experiments.lab.interpreter import Program, first_error
from onpolicy.experiments.lab.problem import AGAIN, ANSWER, NO, SO, TRY, YES, Problem
from onpolicy.experiments.lab.sets import families, partial_families, program_families
from onpolicy.rewards.extract import extract_answer


class Tried(NamedTuple):
    """One attempt in a completion."""

    said: str
    """Idea and working."""
    verdict: bool | None
    """Its verdict about itself; None where the text ends before it."""


def facts(completion: str, problem_id: str) -> float | None:
    """Fraction of attempts that are possible and whose working is true."""
    known = {f"{a.idea} {a.working}" for a in problem_of(problem_id).attempts}
    found = [t.said in known for t in tried(completion) if t.verdict is not None]
    return sum(found) / len(found) if found else None


def verdicts(completion: str, problem_id: str) -> float | None:
    """Fraction of possible attempts whose verdict is correct."""
    works = {f"{a.idea} {a.working}": a.works for a in problem_of(problem_id).attempts}
    found = [t.verdict == works[t.said] for t in tried(completion) if t.verdict is not None and t.said in works]
    return sum(found) / len(found) if found else None


def corrected(completion: str, problem_id: str) -> float | None:
    """Self-correction: for an answer whose first attempt does not work, 1 if the final answer is correct anyway."""
    problem = problem_of(problem_id)
    attempts = tried(completion)
    works = {f"{a.idea} {a.working}" for a in problem.attempts if a.works}
    if not attempts or attempts[0].said in works:
        return None
    return float(extract_answer(completion) == problem.answer)


def harmed(completion: str, problem_id: str) -> float | None:
    """For an answer with an attempt that works, 1 if the final answer is wrong anyway."""
    problem = problem_of(problem_id)
    works = {f"{a.idea} {a.working}" for a in problem.attempts if a.works}
    if not any(t.said in works for t in tried(completion)):
        return None
    return float(extract_answer(completion) != problem.answer)


def self_doubt_precision(completion: str, problem_id: str) -> float | None:
    """Among the attempts that the completion rejects, the fraction that do not work or whose working is false."""
    works = {f"{a.idea} {a.working}" for a in problem_of(problem_id).attempts if a.works}
    rightly = [t.said not in works for t in tried(completion) if t.verdict is False]
    return sum(rightly) / len(rightly) if rightly else None


def self_doubt_recall(completion: str, problem_id: str) -> float | None:
    """Among the attempts that do not work or whose working is false, the fraction that the completion rejects."""
    works = {f"{a.idea} {a.working}" for a in problem_of(problem_id).attempts if a.works}
    rejected = [t.verdict is False for t in tried(completion) if t.verdict is not None and t.said not in works]
    return sum(rejected) / len(rejected) if rejected else None


_MARKERS = "|".join((*TRY, *AGAIN, NO, YES, SO))
_ATTEMPT = re.compile(
    rf"(?:{'|'.join(TRY)}) (?!(?:{_MARKERS})(?: |$))"  # a marker is no idea
    rf"(.*?)(?= (?:{_MARKERS}|{ANSWER})(?: |$)|$)(?: ({NO}|{YES})(?= |$))?"
)


def tried(completion: str) -> list[Tried]:
    """Every attempt, in order."""
    return [Tried(m.group(1), None if m.group(2) is None else m.group(2) == YES) for m in _ATTEMPT.finditer(completion)]


def problem_of(problem_id: str) -> Problem:
    return _by_id()[problem_id]


@cache
def _by_id() -> dict[str, Problem]:
    splits = [*families().values(), *partial_families().values()]
    return {p.id: p for split in splits for problems in split for p in problems}


def interpreter(completion: str, problem_id: str) -> dict[str, object] | None:
    """A reward: 1 where the program's output is correct, else 0 and what the interpreter says of the attempt; None for a search."""
    program = _programs().get(problem_id)
    if program is None:
        return None
    correct = extract_answer(completion) == program.answer
    return {"score": float(correct), "feedback": None if correct else first_error(program, completion)}


def program_of(problem_id: str) -> Program:
    return _programs()[problem_id]


@cache
def _programs() -> dict[str, Program]:
    return {p.id: p for split in program_families().values() for programs in split for p in programs}
