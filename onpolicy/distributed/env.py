"""Whether torchrun or deepspeed started this command as several processes, and which of them this is."""

from __future__ import annotations

import os


def launched() -> bool:
    """One of several ranks."""
    return "LOCAL_RANK" in os.environ and world_size() > 1


def world_size() -> int:
    """How many ranks."""
    return int(os.environ.get("WORLD_SIZE", 1))


def follower() -> bool:
    """A rank other than the first, which drives."""
    return launched() and os.environ["RANK"] != "0"
