"""Where AdamW's two moments are kept between updates: as the update needs them, on the host, or in 8 bits.

The tensors of a parameter's state are plain, so they go into a checkpoint as they are:

    float32, host   step, exp_avg, exp_avg_sq
    8bit            step, exp_avg.codes, exp_avg.scale, exp_avg_sq.codes, exp_avg_sq.scale

Either form is loaded by any kind: where the forms differ, by ``float32_moment`` or by quantising, which rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from onpolicy.trainer.eight_bit import BLOCK, dequantized, quantized

Moments = Literal["float32", "8bit", "host"]
MOMENTS = ("exp_avg", "exp_avg_sq")
SIGNED = {"exp_avg": True, "exp_avg_sq": False}
LEAST_QUANTIZED = 4096
"""Parameters of fewer numbers keep float32, as in torchao: they are norms and biases, and weigh nothing."""
AT_ONCE = 2**24
"""Numbers of a parameter that are updated at once; a multiple of ``BLOCK``. In float32 their moments are 128 MiB."""


class InPlace:
    """In float32, beside the parameter."""

    def zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        """The moments before the first update, as they are kept."""
        return {key: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False) for key in MOMENTS}

    def num_bytes(self, size: int) -> int:
        """Bytes of both moments of so many numbers."""
        return 2 * 4 * size

    def read(self, state: Mapping[str, Tensor], key: str, piece: slice, device: torch.device) -> Tensor:
        """One moment of a piece of the flattened parameter, ``[n]`` float32 on ``device``, to be updated in place."""
        return state[key].view(-1)[piece]

    def write(self, state: Mapping[str, Tensor], key: str, piece: slice, moment: Tensor) -> None:
        """Keeps what ``read`` gave, after the update."""


class OnHost(InPlace):
    """In float32 in the host's memory, pinned where the parameter is on a GPU. All copies are queued on the stream that updates.

    They are not overlapped with anything: at 50 GB/s those of an 8B model take 2.6 s of a step, which takes minutes.
    """

    def zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        return {key: torch.zeros(parameter.shape, pin_memory=parameter.is_cuda) for key in MOMENTS}

    def read(self, state: Mapping[str, Tensor], key: str, piece: slice, device: torch.device) -> Tensor:
        return state[key].view(-1)[piece].to(device, non_blocking=True, copy=True)

    def write(self, state: Mapping[str, Tensor], key: str, piece: slice, moment: Tensor) -> None:
        state[key].view(-1)[piece].copy_(moment, non_blocking=True)


class EightBit(InPlace):
    """In 8 bits, with a float32 scale per block of 256, beside the parameter."""

    def zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        found = {}
        for key in MOMENTS:
            found[f"{key}.codes"] = torch.zeros(parameter.shape, dtype=torch.uint8, device=parameter.device)
            found[f"{key}.scale"] = torch.zeros(parameter.numel() // BLOCK, device=parameter.device)
        return found

    def num_bytes(self, size: int) -> int:
        return 2 * (size + 4 * (size // BLOCK))

    def read(self, state: Mapping[str, Tensor], key: str, piece: slice, device: torch.device) -> Tensor:
        codes, scale = state[f"{key}.codes"].view(-1)[piece], state[f"{key}.scale"][_blocks(piece)]
        return dequantized(codes, scale, signed=SIGNED[key])

    def write(self, state: Mapping[str, Tensor], key: str, piece: slice, moment: Tensor) -> None:
        codes, scale = quantized(moment, signed=SIGNED[key])
        state[f"{key}.codes"].view(-1)[piece] = codes
        state[f"{key}.scale"][_blocks(piece)] = scale


IN_PLACE, ON_HOST, EIGHT_BIT = InPlace(), OnHost(), EightBit()


def can_be_quantized(parameter: Tensor) -> bool:
    """Whether it is large enough, and consists of whole blocks."""
    return parameter.numel() >= LEAST_QUANTIZED and parameter.numel() % BLOCK == 0


def pieces(parameter: Tensor) -> list[slice]:
    """Of the flattened parameter."""
    return [slice(i, min(i + AT_ONCE, parameter.numel())) for i in range(0, parameter.numel(), AT_ONCE)]


def float32_moment(state: Mapping[str, Tensor], key: str) -> Tensor:
    """One moment of a parameter's state in either form, float32 in the parameter's shape.

    Args:
        state: a parameter's, as saved
        key: ``exp_avg`` or ``exp_avg_sq``
    """
    if key in state:
        return state[key]
    codes = state[f"{key}.codes"]
    return dequantized(codes.reshape(-1), state[f"{key}.scale"], signed=SIGNED[key]).view(codes.shape)


def restored_moments(store: InPlace, parameter: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a saved state's moments, in either form, as ``store`` keeps them."""
    found = store.zeros(parameter)
    if found.keys() <= state.keys():
        for key, tensor in found.items():
            tensor.copy_(state[key])
        return found
    for key in MOMENTS:
        flat = float32_moment(state, key).reshape(-1)
        for piece in pieces(parameter):
            moment = store.read(found, key, piece, parameter.device)
            store.write(found, key, piece, moment.copy_(flat[piece]))
    return found


def _blocks(piece: slice) -> slice:
    return slice(piece.start // BLOCK, piece.stop // BLOCK)
