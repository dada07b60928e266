"""Environments as their authors write them: a package's own, and small ones around what a package has."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import verifiers as vf
from datasets import Dataset
from verifiers.envs.experimental.mcp_env import MCPEnv
from verifiers.envs.integrations.reasoninggym_env import ReasoningGymEnv


def gym(*, task: str = "basic_arithmetic", size: int = 6) -> vf.Environment:
    """reasoning-gym's problems by verifiers' own environment, unchanged."""
    return ReasoningGymEnv(gym=task, num_train_examples=size, num_eval_examples=2)


def calculator(*, size: int = 4, max_turns: int = 3) -> vf.Environment:
    """The tools of the package mcp-server-calculator, by verifiers' own environment for such servers."""
    rows = [{"question": f"What is {a} + {a}?", "answer": str(2 * a)} for a in range(1, size + 1)]

    def holds_answer(completion: Any, answer: str) -> float:
        return float(any(m.role == "tool" and answer == m.content.strip() for m in completion))

    return MCPEnv(
        mcp_servers=[
            {
                "name": "calculator",
                "command": sys.executable,
                "args": ["-m", "mcp_server_calculator"],
                "env": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            }
        ],
        dataset=Dataset.from_list(rows),
        rubric=vf.Rubric(funcs=[holds_answer]),
        max_turns=max_turns,
    )


def faults(*, kind: str) -> vf.Environment:
    """Asks twice, and does not do well."""

    class Faulty(vf.MultiTurnEnv):  # type: ignore[misc]
        async def env_response(self, messages: Any, state: Any, **more: Any) -> Any:
            if kind == "raises":
                raise RuntimeError("the database is gone")
            if kind == "hangs":
                time.sleep(5)
            text = "" if kind == "says_nothing" else "x" * 2000 if kind == "floods" else "And now?"
            return [{"role": "user", "content": text}]

    def graded(completion: Any) -> float:
        if kind == "cannot_grade":
            raise ZeroDivisionError("no grade")
        return 1.0

    rows = [{"question": f"Question {i}?", "answer": ""} for i in range(2)]
    return Faulty(dataset=Dataset.from_list(rows), rubric=vf.Rubric(funcs=[graded]), max_turns=2)


def compares() -> vf.Environment:
    def best(completions: Any) -> list[float]:
        return [1.0] * len(completions)

    return vf.SingleTurnEnv(
        dataset=Dataset.from_list([{"question": "q", "answer": "a"}]), rubric=vf.Rubric(funcs=[best])
    )
