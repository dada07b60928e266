"""What does this program print? A skill that can be learned itself, beside the search, and an interpreter that says where a run went wrong.

A program starts from a number and changes it step by step, modulo 25: ``add k``, ``take k``, ``double``, and ``flip``, which is 24 minus
the number. Nothing has to be searched: every step follows from the one before.

    run 5 step 1 add 3 step 2 double step 3 take 2 : step 1 add 3 8 step 2 double 16 step 3 take 2 14 so #### 14

The interpreter runs the program beside an attempt and names the first step that is wrong: ``got double 15 expected step 2 double 16``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from onpolicy.experiments.lab.problem import ANSWER, SO
from onpolicy.rewards.extract import extract_answer

MODULUS, LARGEST_OPERAND = 25, 6
BINARY: Mapping[str, Callable[[int, int], int]] = {"add": lambda v, k: v + k, "take": lambda v, k: v - k}
UNARY: Mapping[str, Callable[[int], int]] = {"double": lambda v: 2 * v, "flip": lambda v: MODULUS - 1 - v}
RUN, STEP, EXPECTED, GOT = "run", "step", "expected", "got"
WORDS = (RUN, STEP, EXPECTED, GOT, "take", *UNARY)
"""Words that the search tasks do not have."""
_STEPS = re.compile(rf"{STEP} (\d+) ((?:{'|'.join(BINARY)}) \d+ \d+|(?:{'|'.join(UNARY)}) \d+)(?= |$)")


@dataclass(frozen=True)
class Program:
    """A program and what it prints."""

    id: str
    question: str
    values: tuple[int, ...]
    """The number after each step."""

    @property
    def answer(self) -> str:
        return str(self.values[-1])


def programs(steps: int, *, size: int, seed: int) -> tuple[Program, ...]:
    """``size`` different programs of that many steps; the same seed gives the same ones."""
    draw = Random(f"programs {steps} {seed}")
    found: dict[str, Program] = {}
    while len(found) < size:
        program = _program(draw, steps)
        found.setdefault(program.id, program)
    return tuple(found.values())


def _program(draw: Random, steps: int) -> Program:
    value = start = draw.randrange(MODULUS)
    said, values = [], []
    for _ in range(steps):
        name = draw.choice((*BINARY, *UNARY))
        operand = draw.randint(1, LARGEST_OPERAND) if name in BINARY else None
        said.append(name if operand is None else f"{name} {operand}")
        value = after(value, said[-1])
        values.append(value)
    text = " ".join([RUN, str(start), *(f"{STEP} {i} {instruction}" for i, instruction in enumerate(said, start=1))])
    return Program(id=text.replace(" ", "-"), question=text, values=tuple(values))


def instructions(program: Program) -> tuple[int, list[str]]:
    """The number that a program starts from, and its instructions."""
    _, start, *_ = program.question.split()
    return int(start), re.findall(rf"{STEP} \d+ ([a-z]+(?: \d+)?)", program.question)


def after(value: int, instruction: str) -> int:
    """The number after one instruction."""
    name, *operand = instruction.split()
    changed = BINARY[name](value, int(operand[0])) if operand else UNARY[name](value)
    return changed % MODULUS


def trace(program: Program, values: Sequence[int]) -> str:
    """The beginning of a run, said step by step: which instruction, and the number after it."""
    _, said = instructions(program)
    steps = enumerate(zip(said, values, strict=False), start=1)
    return " ".join(f"{STEP} {i} {instruction} {value}" for i, (instruction, value) in steps)


def answered(program: Program, values: Sequence[int]) -> str:
    """A run said step by step, and what it prints."""
    return f"{trace(program, values)} {SO} {ANSWER} {values[-1]}"


def printed(program: Program) -> str:
    """What a program prints, without its run."""
    return f"{SO} {ANSWER} {program.answer}"


def first_error(program: Program, completion: str) -> str:
    """What the interpreter says of an attempt: its first wrong step, else the number that it prints; empty where all is correct.

    Steps that an attempt leaves out are not asked for; its answer is compared with the last one.
    """
    said = dict(_STEPS.findall(completion))
    _, steps = instructions(program)
    expected = {str(i): f"{a} {b}" for i, (a, b) in enumerate(zip(steps, program.values, strict=True), start=1)}
    for step, correct in expected.items():
        if step in said and said[step] != correct:
            return f"{GOT} {said[step]} {EXPECTED} {STEP} {step} {correct}"
    given, (last, correct) = extract_answer(completion), list(expected.items())[-1]
    if given == program.answer:
        return ""
    told = f"{GOT} {given} " if given and given.isdigit() else ""
    return f"{told}{EXPECTED} {STEP} {last} {correct}"


def named_step(error: str) -> int:
    """The step that the interpreter names."""
    _, _, named = error.partition(f"{EXPECTED} {STEP} ")
    return int(named.split()[0])


def wrong_steps(program: Program, completion: str) -> int:
    """Steps of an attempt that are missing or do not follow from what it said before them."""
    said = dict(_STEPS.findall(completion))
    value, steps = instructions(program)
    wrong = 0
    for i, step in enumerate(steps, start=1):
        found = said.get(str(i), "")
        value = after(value, step)
        wrong += found != f"{step} {value}"
        if found.startswith(f"{step} "):
            value = int(found.split()[-1])
    return wrong
