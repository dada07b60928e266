"""Tensors in 8 bits: block-wise dynamic quantisation, as 8-bit optimizers use it.

A block is 256 consecutive numbers. It is divided by the one that is largest in absolute value, the block's scale, and each quotient is
replaced by the index, the code, of the nearest entry of a table (Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise
Quantization, arXiv 2110.02861, whose blocks are of 2,048; torchao's are of 256, too). Two things differ from the paper and from torchao:
the scale has the sign of its number, and the table for what is never negative has no 0 (``dynamic_map``).

torchao's AdamW8bit (0.18) compiles its update by ``torch.compile``. On a CPU this needs a C++ compiler at run time and took 23 s for
three shapes of parameters, and without a compiler it fails; hence our own (docs/log.md, Moments in 8 bits).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 256
"""Consecutive numbers that share a scale."""


@cache
def dynamic_map(*, signed: bool) -> Tensor:
    """The table that codes are indices of, float32 in ascending order: 256 numbers in [-1, 1], or 255 in (0, 1].

    The dynamic quantisation of arXiv 2110.02861: decade e in 0..6, from 10^-e down to 10^-(e+1), is divided into equal
    intervals, whose middles are entries: 2^(6-e) of them for each sign, or 2^(7-e) if there is one sign alone. Decade 0 has 64, or 128, so
    that a number near the block's largest is off by at most 0.7, or 0.35 percent of the largest. To these come 1 and, if signed, 0.

    Without sign there is no 0: Adam divides by the root of the second moment, and where that was rounded to 0 while the first was not,
    it would divide by epsilon alone (the zero-point problem: Li, Chen, Zhu, Memory Efficient Optimizers with 4-bit States, arXiv
    2309.01507). What is smaller than the smallest entry, 3.25e-7 of the block's largest, is rounded up to it.
    """
    middles = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1.0, 2 ** (6 - decade + (not signed)) + 1, dtype=torch.float64)
        middles.append((edges[:-1] + edges[1:]) / 2 * 10.0**-decade)
    # There is no -1: a scale with the sign of its number makes the largest quotient 1, which rounds to itself. A scale without sign would
    # round a largest number that is negative by 0.7 percent towards 0, in each step again.
    positive = torch.cat([*middles, torch.ones(1, dtype=torch.float64)])
    signs = [-positive[:-1], torch.zeros(1, dtype=torch.float64), positive] if signed else [positive]
    return torch.cat(signs).sort().values.float()


@cache
def _on(device: torch.device, signed: bool) -> tuple[Tensor, Tensor]:
    """The table, and the middles between its neighbours."""
    table = dynamic_map(signed=signed)
    return table.to(device), ((table[:-1] + table[1:]) / 2).to(device)


def quantized(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes and scales of numbers; the largest of each block, and a block of zeros, come back without error.

    Args:
        values: ``[n]`` float32, n a multiple of 256; not negative unless ``signed``
        signed: which table

    Returns:
        ``[n]`` uint8 and ``[n / 256]`` float32
    """
    _, middles = _on(values.device, signed)
    blocks = values.view(-1, BLOCK)
    scale = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    shares = blocks / torch.where(scale == 0, 1.0, scale)
    return torch.bucketize(shares, middles, out_int32=True).to(torch.uint8).view(-1), scale.view(-1)


def dequantized(codes: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """``[n]`` float32 of ``[n]`` codes and ``[n / 256]`` scales."""
    table, _ = _on(codes.device, signed)
    return (table[codes.view(-1, BLOCK).int()] * scale.unsqueeze(1)).view(-1)
