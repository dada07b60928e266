"""Rewards for the length of a completion."""

from __future__ import annotations


def overlong(num_tokens: int, *, max_tokens: int, buffer: int) -> float:
    """0 up to ``max_tokens - buffer``, then falling linearly to -1 at ``max_tokens``.

    DAPO's soft overlong punishment (arXiv 2503.14476, equation 13).

    Args:
        max_tokens: length that is penalised in full, tokens
        buffer: length over which the penalty grows, tokens
    """
    return -min(max((num_tokens - (max_tokens - buffer)) / buffer, 0.0), 1.0)


def brevity(num_tokens: int, *, budget: int) -> float:
    """1 for an empty completion, falling linearly to 0 at the budget.

    Args:
        budget: length from which nothing is earned, tokens
    """
    return max(0.0, 1.0 - num_tokens / budget)
