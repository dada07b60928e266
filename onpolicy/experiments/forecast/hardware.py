"""GPUs by their data sheets, and any other by three numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from onpolicy.utils.errors import ConfigError, suggest

GIB = 2.0**30


@dataclass(frozen=True)
class Gpu:
    """What a GPU's data sheet says."""

    flops: float
    """Dense bfloat16 operations per second, accumulated in float32."""
    bandwidth: float
    """Memory bandwidth, bytes per second."""
    gib: float


GPUS: Mapping[str, Gpu] = {
    "a100": Gpu(312e12, 2.0e12, 80),
    "h100": Gpu(989e12, 3.35e12, 80),
    "h200": Gpu(989e12, 4.8e12, 141),
    "b200": Gpu(2250e12, 8.0e12, 180),
    "l40s": Gpu(362e12, 0.864e12, 48),
    "a6000": Gpu(155e12, 0.768e12, 48),
    "rtx5090": Gpu(210e12, 1.79e12, 32),
    "rtx4090": Gpu(165e12, 1.01e12, 24),
    "rtx3090": Gpu(71e12, 0.936e12, 24),
}
NUMBER = r"(\d+(?:\.\d+)?)"
OTHER = re.compile(rf"{NUMBER}GiB,{NUMBER}TFLOP/s,{NUMBER}TB/s", re.IGNORECASE)
"""How a GPU that is not in ``GPUS`` is written."""


def gpu_of(text: str) -> Gpu:
    """A GPU by its name, or by its memory, speed and bandwidth: ``24GiB,165TFLOP/s,1.01TB/s``.

    Raises:
        ConfigError: neither of them.
    """
    if text in GPUS:
        return GPUS[text]
    if given := OTHER.fullmatch(text.replace(" ", "")):
        gib, tflops, tbs = map(float, given.groups())
        if min(gib, tflops, tbs) > 0:
            return Gpu(tflops * 1e12, tbs * 1e12, gib)
    raise ConfigError(
        f"--gpu: got {text!r}, expected one of {', '.join(GPUS)}, or memory, dense bfloat16 speed and bandwidth as in "
        f"24GiB,165TFLOP/s,1.01TB/s.{suggest(text, GPUS)}"
    )
