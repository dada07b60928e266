"""A reward whose package uses torch elsewhere."""

from __future__ import annotations

from tests.annotation.model_rewards import model

MAKE = model


def by_words(completion: str) -> float:
    return float(len(completion.split()))
