"""Seeds derived from the run's seed and from what is sampled, so that they do not depend on anything done before."""

from __future__ import annotations

import hashlib


def step_seed(*key: int | str) -> int:
    """32 bits from the run's seed, a purpose and a step: the same whether or not the run was interrupted before it."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:4], "big")


def rollout_seed(seed: int, prompt_id: str, index: int, occurrence: int = 0) -> int:
    """31 bits from the step's seed, the prompt and the rollout's index in its group: the same whatever else is in the batch.

    ``occurrence`` says how often the problem came before within the step; the groups of one problem have other rollouts.
    """
    again = f"/{occurrence}" if occurrence else ""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{index}{again}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
