"""Numbers of a whole optimizer update, for functions that compare a token with all others of it: a quantile, a mean, a spread.

A function declares ``reads_update`` and calls ``inputs.over_update(values)`` with its own micro-batch's numbers; it gets those
of the whole update. Before the first gradient every function is therefore run on all micro-batches, and stopped where it asks
for something that is not yet known: after the first round the first question can be answered, and so on. A function has to ask
the same questions in the same order on every micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from onpolicy.types import LossInputs

Answers = Sequence[Tensor]
"""[n] by question: the values of the whole update."""
Function = TypeVar("Function", bound=Callable[..., object])


def reads_update(function: Function) -> Function:
    """Declares that a plug-in calls ``inputs.over_update``: the update is then read once before its first gradient."""
    function.reads_update = True  # type: ignore[attr-defined]
    return function


def with_answers(inputs: LossInputs, answers: Answers | None) -> LossInputs:
    """The micro-batch, with the answers for the functions of one term."""
    return inputs if answers is None else replace(inputs, over_update=_Questions(answers))


@torch.no_grad()
def asked_for(
    function: Callable[[LossInputs], Any], read: Sequence[LossInputs], gather: Callable[[Any], list[Any]]
) -> Answers:
    """The values of the whole update that a function asks for.

    Args:
        function: asks through ``inputs.over_update``
        read: the update's micro-batches on this rank
        gather: a rank's values -> those of all ranks
    """
    answers: list[Tensor] = []
    while True:
        own = [values for inputs in read if (values := _unanswered(function, inputs, answers)) is not None]
        found = [values for rank in gather([v.cpu() for v in own]) for values in rank]
        if not found:
            return answers
        answers.append(torch.cat(found))


class _Unanswered(Exception):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values


class _Questions:
    """Answers one micro-batch's questions in their order."""

    def __init__(self, answers: Answers) -> None:
        self._answers, self._asked = answers, 0

    def __call__(self, values: Tensor) -> Tensor:
        if self._asked == len(self._answers):
            raise _Unanswered(values.detach())
        self._asked += 1
        return self._answers[self._asked - 1].to(values)


def _unanswered(function: Callable[[LossInputs], Any], inputs: LossInputs, answers: Answers) -> Tensor | None:
    try:
        function(with_answers(inputs, answers))
    except _Unanswered as question:
        return question.values
    return None
