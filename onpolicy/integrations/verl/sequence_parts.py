"""Ulysses: the ranks of a group hold parts of a packed batch's positions, and exchange what they compute at sampled tokens.

Each rank runs the head at the tokens whose states it holds, and every rank of the group then has the numbers of all tokens. A loss of those
numbers is the same on all of them and counts once: the backward pass of a rank goes on with the gradient at its own tokens alone, so that
the sum of the ranks' gradients is that of one rank that holds everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Of the N tokens of a batch, those whose states are on this rank."""

    rows: Tensor
    """[n] where their states stand among this rank's positions."""
    own: Tensor | slice
    """Which of the N they are."""
    counts: tuple[int, ...] = ()
    """Of each rank of the group, how many it holds; empty where there is no group."""
    group: Any = None

    def gathered(self, numbers: Tensor) -> Tensor:
        """``[n, ...]`` of this rank's tokens -> ``[N, ...]`` of all of them."""
        if self.group is None:
            return numbers
        found: Tensor = _Gathered.apply(numbers, self.counts, self.group)  # type: ignore[no-untyped-call]
        return found


def part_of(places: Tensor, positions: int, group: Any) -> Part:
    """This rank's part.

    Args:
        places: [N] ascending, where the states of the tokens stand in the whole batch
        positions: of the whole batch; ranks hold equal parts of them, after padding at the end
        group: the ranks that share a batch; None: this rank has all of it
    """
    if group is None:
        return Part(places, slice(None))
    size, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    length = -(-positions // size)
    owner = places // length
    own = owner == rank
    return Part(places[own] - rank * length, own, tuple(owner.bincount(minlength=size).tolist()), group)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, numbers: Tensor, counts: tuple[int, ...], group: Any) -> Tensor:
        rank = torch.distributed.get_rank(group)
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        padded = numbers.new_zeros(max(counts), *numbers.shape[1:])
        padded[: len(numbers)] = numbers
        ranks = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(ranks, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(ranks, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.own], None, None
