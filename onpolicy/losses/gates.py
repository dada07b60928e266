"""Gates: token weights that depend on the rollout's outcome or on how sure the teacher is."""

from __future__ import annotations

import torch
from torch import Tensor

from onpolicy.types import LossInputs


def positive_advantage(inputs: LossInputs, mask: Tensor) -> Tensor:
    """1 where A > 0, 0 elsewhere: m_i = 1[A_i > 0] of SDPG (arXiv 2606.04036).

    As in its code the other rollouts' tokens still count in the mean, so the loss shrinks with the share of rollouts that did
    better than their group; the route `above_average` leaves them out of it.
    """
    return (inputs.advantages > 0).to(inputs.entropy.dtype)


def teacher_entropy_gate(
    inputs: LossInputs,
    mask: Tensor,
    *,
    minimum: float = 0.1,
    scale: float = 1.0,
    lookahead: int = 0,
    context: str = "teacher",
) -> Tensor:
    """w_t = minimum + (1 - minimum) exp(-h_t / scale), h_t the teacher's lowest entropy at t and the next `lookahead` tokens.

    The confidence gate of EGRSD (arXiv 2605.13255): tokens where the teacher is uncertain count less, none counts nothing. With
    a lookahead, as in its CL-EGRSD, uncertainty that is soon resolved does not count. The exponential is ours.

    Args:
        minimum: smallest weight, 0 to 1
        scale: nats
        lookahead: tokens after t that are looked at
        context: the context that the teacher reads
    """
    entropy = inputs.teacher[context].entropy.masked_fill(~mask, torch.inf)
    beyond = torch.nn.functional.pad(entropy, (0, lookahead), value=torch.inf)
    lowest = torch.where(mask, beyond.unfold(-1, lookahead + 1, 1).amin(-1), 0.0)
    return minimum + (1.0 - minimum) * torch.exp(-lowest / scale)
