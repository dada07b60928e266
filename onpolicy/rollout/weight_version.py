"""The check that every generator makes before it loads weights."""

from __future__ import annotations


class StaleWeights(RuntimeError):
    """Weights were handed over that are not newer than the ones in use."""


def require_newer(version: int, current: int) -> int:
    """Returns ``version`` if weights of that version may replace those of version ``current``.

    Raises:
        StaleWeights: they are not newer.
    """
    if version <= current:
        raise StaleWeights(f"update_weights: got version {version}, the generator already has {current}")
    return version
