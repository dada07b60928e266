"""What the teacher does to an advantage: ``(inputs) -> [B, T]``, without gradient.

All read u_t = log teacher(y_t) - log old student(y_t), positive where the teacher would rather have said the token.
Tokens whose rollout has no context keep the group's advantage A.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from onpolicy.types import LossInputs

Advantage = Callable[[LossInputs], Tensor]


def group(inputs: LossInputs) -> Tensor:
    """A_t = A, from `credit`."""
    return inputs.advantages


def add(inputs: LossInputs, *, coefficient: float = 0.1, view: str = "teacher") -> Tensor:
    """A_t = A + coefficient u_t: reward and reverse KL in one advantage.

    Args:
        coefficient: of u_t, per nat
        view: the context under which the teacher reads
    """
    return _where_taught(inputs, view, inputs.advantages + coefficient * _gap(inputs, view))


def add_keeping_sign(inputs: LossInputs, *, coefficient: float = 0.1, view: str = "teacher") -> Tensor:
    """A_t = A + coefficient u_t, but 0 where that would turn the sign of A: the teacher scales blame and praise, never swaps them.

    The clamp of RLCSD (arXiv 2606.11709).

    Args:
        coefficient: of u_t, per nat
        view: the context under which the teacher reads
    """
    summed = inputs.advantages + coefficient * _gap(inputs, view)
    return _where_taught(inputs, view, torch.where(summed * inputs.advantages > 0, summed, 0.0))


def multiply(inputs: LossInputs, *, share: float = 0.5, clip: float = 0.2, view: str = "teacher") -> Tensor:
    """A_t = A ((1 - share) + share w_t), w_t = clip(exp(sign(A) u_t), 1 - clip, 1 + clip).

    RLSD (arXiv 2604.03128): the reward decides the direction, the teacher how much of it each token gets.

    Args:
        share: how far the weights replace 1, 0 to 1
        clip: w_t stays within 1 - clip and 1 + clip
        view: the context under which the teacher reads
    """
    advantages = inputs.advantages
    weight = (advantages.sign() * _gap(inputs, view)).exp().clamp(1.0 - clip, 1.0 + clip)
    return _where_taught(inputs, view, advantages * ((1.0 - share) + share * weight))


def bounded_reversal(inputs: LossInputs, *, coefficient: float = 1.0, view: str = "teacher") -> Tensor:
    """A_t = A - coefficient phi(u_t), phi(u) = (softplus(u) - ln 2) / 2: away from the teacher, within bounds.

    AntiSD (arXiv 2605.11609) without its entropy gate: a token the teacher would never have said gains at most
    coefficient (ln 2) / 2; one it would have insisted on loses in proportion to u.

    Args:
        coefficient: strength
        view: the context under which the teacher reads
    """
    phi = 0.5 * (torch.nn.functional.softplus(_gap(inputs, view)) - math.log(2.0))
    return _where_taught(inputs, view, inputs.advantages - coefficient * phi)


def _gap(inputs: LossInputs, view: str) -> Tensor:
    return inputs.teacher[view].logprobs - inputs.old_logprobs


def _where_taught(inputs: LossInputs, view: str, changed: Tensor) -> Tensor:
    return torch.where(inputs.teacher[view].mask, changed, inputs.advantages)
