"""Plug-ins that do harm to the ranks of a run, once, at a given step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from onpolicy.trainer.body_runner import BodyRunner
from onpolicy.types import LossInputs, TermOutput

LENGTH = 8
"""Of the runs' completions; what the contracts try is shorter."""


def ranks() -> list[int]:
    """Processes of the ranks that this process has started, by way of Ray; not those of another test suite."""
    own = psutil.Process().children(recursive=True)
    return [p.pid for p in own if any("ray::Rank" in part for part in _cmdline(p))]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Harm:
    def __init__(self, run_dir: Path, step: int, number: int, every_time: bool) -> None:
        self.done, self.step, self.number, self.every_time = run_dir / f"harmed-{number}", step, number, every_time

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step == self.step and (self.every_time or not self.done.exists()):
            self.done.touch()
            os.kill(ranks()[-1], self.number)

    def close(self) -> None:
        """Nothing is held."""


def kill(run_dir: Path, resume_at: int, *, step: int, every_time: bool = False) -> Harm:
    return Harm(run_dir, step, signal.SIGKILL, every_time)


def stop(run_dir: Path, resume_at: int, *, step: int) -> Harm:
    return Harm(run_dir, step, signal.SIGSTOP, False)


def greedy(inputs: LossInputs, *, most: int) -> TermOutput:
    """Runs out of memory where a micro-batch of a run has more tokens."""
    if inputs.sampled_mask.shape[1] == LENGTH and inputs.sampled_mask.sum() > most:
        raise torch.OutOfMemoryError("no room")
    return TermOutput(per_token=-inputs.logprobs)


def slow(inputs: LossInputs, *, seconds: float) -> TermOutput:
    """From its first micro-batch of a run on, every forward pass of its process takes so much longer."""
    if inputs.sampled_mask.shape[1] == LENGTH and not hasattr(BodyRunner, "quick"):
        BodyRunner.quick = quick = BodyRunner.run  # type: ignore[attr-defined]

        def run(*arguments: Any) -> Any:
            time.sleep(seconds)
            return quick(*arguments)

        BodyRunner.run = run  # type: ignore[method-assign, assignment]
    return TermOutput(per_token=-inputs.logprobs)


def broken(inputs: LossInputs) -> TermOutput:
    if inputs.sampled_mask.shape[1] == LENGTH:
        raise ZeroDivisionError("a term of the user's")
    return TermOutput(per_token=-inputs.logprobs)
