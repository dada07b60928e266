"""A reward whose package uses torch elsewhere."""

from __future__ import annotations

from tests.annotation.model_rewards import Judge

JUDGE = Judge


def by_words(completion: str) -> float:
    return float(len(completion.split()))
