"""How often graders are wrong: ``python -m tests.grading FILE [--kinds] [--wrong] [--grader NAME]``.

The file has one JSON object a line: ``kind``, ``gold``, ``completion``, ``expected`` (whether the completion is correct),
``undisputed`` (whether everybody would say so; others are not counted), and optionally ``opened: true`` where the chat template has
already written the tag that opens the thinking.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from onpolicy.rewards.answer import exact_answer, math_answer
from onpolicy.rewards.base import RewardInput, score
from onpolicy.rewards.paper import paper_eval_answer, paper_train_answer
from onpolicy.utils.thinking import strip_thinking

GRADERS: dict[str, Callable[..., bool]] = {
    f.__name__: f for f in (math_answer, exact_answer, paper_train_answer, paper_eval_answer)
}


class Case(NamedTuple):
    """One completion whose correctness is known."""

    kind: str
    gold: str
    completion: str
    expected: bool
    undisputed: bool = True
    opened: bool = False


class Errors(NamedTuple):
    """What a grader got wrong among undisputed cases."""

    refused: list[Case]
    """Right answers that it refused."""
    right: int
    accepted: list[Case]
    """Wrong answers that it accepted."""
    wrong: int

    def __str__(self) -> str:
        return f"{_share(self.refused, self.right)} right refused   {_share(self.accepted, self.wrong)} wrong accepted"


def read_cases(path: Path) -> list[Case]:
    """Every case of a file."""
    return [Case(**json.loads(line)) for line in path.read_text().splitlines() if line.strip()]


def verdict(grader: Callable[..., bool], case: Case) -> bool:
    """What a grader says, called as the framework calls it: with the part after the thinking as the renderer tells it."""
    final = strip_thinking(case.completion, opened=case.opened)
    sample = RewardInput(id=case.kind, prompt="", completion=case.completion, final=final, answer=case.gold)
    return score(grader, [sample]) == [1.0]


def errors(grader: Callable[..., bool], cases: Sequence[Case]) -> Errors:
    """The errors of a grader among the undisputed cases."""
    counted = [case for case in cases if case.undisputed]
    mistaken = [case for case in counted if verdict(grader, case) != case.expected]
    right = sum(case.expected for case in counted)
    return Errors(
        [c for c in mistaken if c.expected], right, [c for c in mistaken if not c.expected], len(counted) - right
    )


def _share(found: Sequence[Case], of: int) -> str:
    return f"{len(found):4d} of {of:4d} ({len(found) / max(of, 1):6.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--grader", choices=GRADERS, help="this one alone")
    parser.add_argument("--kinds", action="store_true", help="per kind, too")
    parser.add_argument("--wrong", action="store_true", help="each case that a grader gets wrong")
    given = parser.parse_args()
    cases = read_cases(given.file)
    kinds = defaultdict(list)
    for case in cases:
        kinds[case.kind].append(case)
    for name in [given.grader] if given.grader else GRADERS:
        found = errors(GRADERS[name], cases)
        print(f"{name:20s} {found}")
        for kind, some in kinds.items() if given.kinds else ():
            print(f"  {kind:18s} {errors(GRADERS[name], some)}")
        for case in [*found.refused, *found.accepted] if given.wrong else ():
            print(f"  {'refused ' if case.expected else 'accepted'} {case.gold!r}: {case.completion!r}")


if __name__ == "__main__":
    main()
