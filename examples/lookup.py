"""An environment with a tool, for the library verifiers: the answer to a question can be looked up, and is nowhere else.

onpolicy train examples/lookup.yaml model.path=Qwen/Qwen3-0.6B
"""

from __future__ import annotations

import random
from typing import Any

import verifiers as vf
from datasets import Dataset


def lookup(*, size: int = 64, seed: int = 0) -> vf.Environment:
    """Questions for the value of a key, and the tool ``get``; reward 1 where the last reply is that value."""
    draw = random.Random(seed)
    table = {letter: str(draw.randrange(10)) for letter in "abcdefghijklmnop"}

    async def get(key: str) -> str:
        """The value of a key.

        Args:
            key: one of the letters a to p
        """
        return table.get(key, "nothing")

    def value_is_said(completion: Any, answer: str) -> float:
        last = completion[-1]
        return float(last.role == "assistant" and (last.content or "").strip() == answer)

    def right_key(completion: Any, info: dict[str, Any]) -> float:
        calls = [call for message in completion if message.role == "assistant" for call in message.tool_calls or []]
        return float(any(f'"{info["key"]}"' in call.arguments for call in calls))

    rows = []
    for _ in range(size):
        key = draw.choice(list(table))
        rows.append({"question": f"Value of {key}?", "answer": table[key], "info": {"key": key}})
    return vf.ToolEnv(
        dataset=Dataset.from_list(rows),
        tools=[get],
        rubric=vf.Rubric(funcs=[value_is_said, right_key], weights=[1.0, 0.0]),
        max_turns=3,
    )
