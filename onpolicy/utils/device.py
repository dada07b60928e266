"""Where tensors are computed, order between what several threads queue there, and memory that nothing uses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from onpolicy.utils.errors import UserError

if TYPE_CHECKING:
    import torch


SHOWN = "CUDA_VISIBLE_DEVICES"
"""By which torch and Ray know the GPUs of a machine, and with which Ray gives each actor its own."""


class NoSuchDevice(UserError, ValueError):
    """A device that torch does not find; names the option and the devices that there are."""


def torch_device(name: str | None, key: str) -> torch.device:
    """The device of this name; None: the GPU if there is one, else the CPU.

    Args:
        name: as torch writes it, e.g. ``cuda:1``
        key: the option that names it

    Raises:
        NoSuchDevice: it is not there.
    """
    import torch

    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise NoSuchDevice(
            f"{key}: got {name!r}, expected one of {', '.join(there)}; null takes the best of them"
        ) from error
    return device


def available_cores() -> int:
    """Cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shown_gpus() -> list[str]:
    """What the machine calls the GPUs that this process is shown, in torch's order; empty where it is shown all of them."""
    return [name for name in os.environ.get(SHOWN, "").split(",") if name]


def device_name(device: torch.device) -> str:
    """``cpu``, or a GPU as the machine counts them, whatever this process is shown."""
    if device.type != "cuda":
        return str(device)
    shown, index = shown_gpus(), device.index or 0
    return f"cuda:{shown[index] if index < len(shown) else index}"


def empty_cache() -> None:
    """Gives memory that torch keeps for later back to the GPU, where others can take it; without a GPU does nothing."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize() -> None:
    """Waits until the GPU has done everything that is queued on it, whoever queued it; without a GPU does nothing."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gpu_uuid() -> str | None:
    """What the current GPU is called everywhere, whatever a process is shown; None without a GPU."""
    import torch

    return (
        str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid) if torch.cuda.is_available() else None
    )
