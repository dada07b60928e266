"""reasoning-gym's own verifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.extract import after_thinking, extract_answer


def gym_answer(completion: str, fields: Mapping[str, Any]) -> float:
    """The score, 0 to 1, that the task's verifier gives the final answer; rows come from ``data: {name: gym}``."""
    from reasoning_gym import get_score_answer_fn

    task = fields["gym"]
    found = extract_answer(completion)
    answer = after_thinking(completion).strip() if found is None else found
    try:
        return float(get_score_answer_fn(task["task"])(answer, task["entry"]))
    except Exception:
        # some verifiers raise on text that is no answer at all (prime_factorization does); that text is wrong
        return 0.0
