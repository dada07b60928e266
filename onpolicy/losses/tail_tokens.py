"""Losses on the tokens that the student itself finds unlikely; no teacher, no reward."""

from __future__ import annotations

import torch
from torch import Tensor

from onpolicy.losses.comparison import needs_no_reward
from onpolicy.types import LossInputs


def unlikely(inputs: LossInputs, mask: Tensor, *, share: float = 0.2) -> Tensor:
    """1 on the given fraction of each row's tokens that were least likely under the old student, 0 elsewhere.

    S_lowest20 of OPSA (arXiv 2608.31046, section 4.2); of N tokens max(1, floor(share N)), as its code counts.

    Args:
        share: fraction of the row's tokens that is selected, 0 to 1; at least one token
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share of the least likely tokens must lie above 0 and at most at 1, got {share}")
    ranks = inputs.old_logprobs.masked_fill(~mask, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
    kept = (share * mask.sum(-1, keepdim=True).double()).floor().clamp(min=1)
    return ((ranks < kept) & mask).to(inputs.entropy.dtype)


@needs_no_reward
def tail_suppression(
    inputs: LossInputs, *, share: float = 0.2, weakest: float = -0.5, strongest: float = -1.0
) -> Tensor:
    """A_t = weakest + (strongest - weakest) (H_t - H_min) / (H_max - H_min) on a rollout's least likely tokens, 0 elsewhere.

    OPSA (arXiv 2608.31046, equation 5): H the student's entropy, its extremes taken over the same tokens of the rollout; where
    they are equal all get `strongest`, as in its code. Two equal bounds give the one fixed advantage of its section 3.2 (delta
    = 0 in equation 4). The paper's mean is over the chosen tokens alone.

    Args:
        share: fraction of a rollout's tokens that is pushed down, 0 to 1; at least one token
        weakest: advantage of the chosen token with the lowest entropy
        strongest: advantage of the one with the highest
    """
    chosen = unlikely(inputs, inputs.sampled_mask, share=share) > 0
    lowest = inputs.entropy.masked_fill(~chosen, torch.inf).amin(-1, keepdim=True)
    spread = inputs.entropy.masked_fill(~chosen, -torch.inf).amax(-1, keepdim=True) - lowest
    place = torch.where(spread > 0, (inputs.entropy - lowest) / spread, 1.0)
    return torch.where(chosen, weakest + (strongest - weakest) * place, 0.0)
