"""What a loss term declares about itself; declaring registers nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from onpolicy.types import LossInputs

TermFunction = Callable[..., Any]


@dataclass(frozen=True)
class TermSpec:
    """Which tokens a term trains, and what it reads."""

    tokens: Literal["sampled_mask", "teacher_mask"] = "sampled_mask"
    """All sampled tokens, or only those of rollouts that have the term's ``context``."""
    needs_ref: bool = False
    """Whether it reads ``ref_logprobs``; the trainer then keeps the reference model."""
    unrewarded: bool = False
    """Whether it also trains tokens whose advantage is 0."""


def loss_term(
    *,
    tokens: Literal["sampled_mask", "teacher_mask"] = "sampled_mask",
    needs_ref: bool = False,
    unrewarded: bool = False,
) -> Callable[[TermFunction], TermFunction]:
    """Declares the spec of a term function; without it a term trains all sampled tokens."""

    def declare(function: TermFunction) -> TermFunction:
        function.spec = TermSpec(tokens=tokens, needs_ref=needs_ref, unrewarded=unrewarded)  # type: ignore[attr-defined]
        return function

    return declare


def own_tokens(inputs: LossInputs, otherwise: Tensor) -> Tensor:
    """[B, T] bool: the tokens of the term that is being computed; ``otherwise`` where a term is called outside of an objective."""
    return otherwise if inputs.tokens is None else inputs.tokens


def spec_of(function: TermFunction) -> TermSpec:
    """What ``loss_term`` declared, or the defaults."""
    return getattr(function, "spec", TermSpec())
