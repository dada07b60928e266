"""What a loss term says about itself; it registers nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

TermFunction = Callable[..., Any]


@dataclass(frozen=True)
class TermSpec:
    tokens: Literal["sampled_mask", "teacher_mask"] = "sampled_mask"
    """Which tokens it trains: all that were sampled, or those whose rollout has a context in the term's ``context``."""
    needs_ref: bool = False
    """Whether it reads ``ref_logprobs``, for which the trainer keeps the reference model."""
    unrewarded: bool = False
    """Whether it learns from sampled tokens that have no advantage."""


def loss_term(
    *,
    tokens: Literal["sampled_mask", "teacher_mask"] = "sampled_mask",
    needs_ref: bool = False,
    unrewarded: bool = False,
) -> Callable[[TermFunction], TermFunction]:
    """States facts about a term function; one without them trains all sampled tokens."""

    def state(function: TermFunction) -> TermFunction:
        function.facts = TermSpec(tokens=tokens, needs_ref=needs_ref, unrewarded=unrewarded)  # type: ignore[attr-defined]
        return function

    return state


def spec_of(function: TermFunction) -> TermSpec:
    return getattr(function, "facts", TermSpec())
