"""What a context may ask for when its group is not enough.

A context that needs more is written as a generator function: it yields a request and is handed the reply, as often as it
likes, and returns its messages at the end. Equal requests of one step are answered once; all requests of a step go to
the sampler together.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from onpolicy.types import Message


@dataclass(frozen=True)
class AskModel:
    """A conversation for the student itself to continue; the reply is a ``tuple[Reply, ...]``."""

    messages: tuple[Message, ...]
    samples: int = 1


@dataclass(frozen=True)
class Reply:
    text: str
    score: float
    """What the run's rewards make of the text as an answer to the problem."""


@dataclass(frozen=True)
class SampleProblem:
    """Another problem of the dataset, the same one for all rollouts of a problem within a step; the reply is a ``Prompt``."""


ContextCoroutine = Generator[AskModel | SampleProblem, object, tuple[Message, ...] | None]
"""What a context that asks returns when it is called."""
