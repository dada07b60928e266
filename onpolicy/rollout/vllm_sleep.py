"""When vLLM's engine sleeps: gives its memory back while the trainer works on the same GPU (vLLM's sleep mode, level 1)."""

from __future__ import annotations

import os

import torch

from onpolicy.types import Sampling
from onpolicy.utils.errors import ConfigError

ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Where torch's allocator is told how to work, in torch's order."""


def sleeps(sampling: Sampling, *, beside_trainer: bool) -> bool:
    """Whether an engine is made such that it can sleep: on a GPU that it shares with the trainer, if the two take turns. With
    ``generator.max_staleness`` it samples while the trainer works, and a CPU has no sleep mode.

    Raises:
        ConfigError: it would sleep, and torch's memory is set up in a way that sleep mode does not go together with.
    """
    takes_turns = beside_trainer and not sampling.max_staleness and torch.cuda.is_available()
    if takes_turns:
        _refuse_expandable_segments()
    return takes_turns


def _refuse_expandable_segments() -> None:
    """vLLM's pool cannot be made of such segments (pytorch issue 147851). Its older versions stop at an assertion; newer ones turn them
    off around each of its own allocations, which nobody has tried here."""
    for name in ALLOCATOR_SETTINGS:
        for field in os.environ.get(name, "").split(","):
            option, _, value = field.partition(":")
            if option.strip() == "expandable_segments" and value.strip().lower() in ("true", "1"):
                raise ConfigError(
                    f"{name}: got {field.strip()!r}, expected it without: vLLM gives its memory back while the trainer works on the same "
                    "GPU, and memory in expandable segments cannot be given back so; unset it, or give the generator GPUs of its own "
                    "(distributed.num_generators)"
                )
