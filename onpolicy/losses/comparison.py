"""A comparison of student and teacher: the context, the target, the support, the divergence and the temperature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from onpolicy.losses.supports import Entries, restrict


@dataclass(frozen=True)
class Distributions:
    """Every next-token distribution known at the same positions, as log-probabilities ``[..., V]``; none carries gradient."""

    student: Tensor
    teachers: Mapping[str, Tensor]
    """By context."""
    ref: Tensor | None
    """The reference model's on the student's prompt; None unless something declares ``reads_ref``."""
    token_ids: Tensor
    """[...] the sampled tokens."""
    marker_ids: Mapping[str, Tensor]
    """Lexicon -> ids of its markers that are one token."""


Support = Callable[[Tensor, Tensor], Entries]
"""``(student [..., V], teacher [..., V])`` log-probabilities -> the entries on which they are compared."""
Divergence = Callable[[Tensor, Tensor], Tensor]
"""``(student [..., K], teacher [..., K])`` log-probabilities -> ``[...]``."""
Target = Callable[[Tensor, Distributions], Tensor]
"""``(teacher [..., V], all distributions)`` -> the target that the student is trained towards, log-probabilities ``[..., V]``."""

Function = TypeVar("Function", bound=Callable[..., object])


def reads_ref(function: Function) -> Function:
    """Declares that a plug-in reads the reference model's distribution; the trainer then keeps that model."""
    function.reads_ref = True  # type: ignore[attr-defined]
    return function


def reads_old(function: Function) -> Function:
    """Declares that a plug-in reads ``old_logprobs`` whatever its options: they are known at temperature 1 alone."""
    function.reads_old = True  # type: ignore[attr-defined]
    return function


def needs_no_reward(function: Function) -> Function:
    """Declares that an advantage is no function of the reward: it trains rollouts whose own advantage is 0, too."""
    function.needs_no_reward = True  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True)
class Comparison:
    """Requested by a loss term, computed once over the vocabulary, read from ``LossInputs.divergences``."""

    context: str
    support: Support
    target: Target
    divergence: Divergence
    temperature: float = 1.0
    """Both sides' logits are divided by this first; ``compare`` gets the log-probabilities of the divided ones."""

    def compare(self, student: Tensor, seen: Distributions) -> Tensor:
        """The student's log-probabilities ``[..., V]`` -> the divergence ``[...]`` in nats; only ``student`` carries gradient."""
        with torch.no_grad():
            target = self.target(seen.teachers[self.context], seen).detach()
            entries = self.support(student, target)
        return self.divergence(restrict(student, entries), restrict(target, entries))
