"""Colours and symbols of arms in figures: told apart by colour, and again by symbol once the colours repeat."""

from __future__ import annotations

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")
SYMBOLS = "os^Dv<>pPX*"


def colour(number: int) -> str:
    """Of an arm, by its place."""
    return COLOURS[number % len(COLOURS)]


def symbol(number: int) -> str:
    """Of an arm, by its place; matplotlib's name."""
    return SYMBOLS[number % len(SYMBOLS)]
