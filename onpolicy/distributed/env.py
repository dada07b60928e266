"""The environment variables that torchrun and deepspeed set: whether this process is one of several ranks, and which."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether a launcher started this process as one of several ranks."""
    return "LOCAL_RANK" in os.environ and world_size() > 1


def world_size() -> int:
    """Number of ranks."""
    return int(os.environ.get("WORLD_SIZE", 1))


def follower() -> bool:
    """Whether this is a rank other than rank 0, which runs the training loop."""
    return launched() and os.environ["RANK"] != "0"
