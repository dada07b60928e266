"""One seed for each rollout, so that it does not depend on what else is sampled beside it."""

from __future__ import annotations

import hashlib


def rollout_seed(seed: int, prompt_id: str, index: int) -> int:
    """31 bits from the step's seed, the problem and the rollout's place in its group."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class StaleWeights(RuntimeError):
    """Weights were handed over that are not newer than the ones in use."""


def require_newer(version: int, current: int) -> int:
    """``version``, if weights of that version may replace those of version ``current``."""
    if version <= current:
        raise StaleWeights(f"update_weights: got version {version}, the generator already has {current}")
    return version
