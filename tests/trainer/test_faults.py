"""Faults within one process: memory, and gradients that are not finite.

1. where memory runs out the update is begun again with half the micro-batch: the gradient, metrics and telemetry of an untroubled
trainer, said once a halving; a single rollout that does not fit raises; 2. a gradient that is not finite once is skipped and
counted; five steps in a row stop the run, saved, with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from onpolicy.losses.terms.policy_gradient import policy_gradient
from onpolicy.types import LossInputs, TermOutput
from tests.runs import metrics, run_here, write_config
from tests.tiny import random_examples
from tests.trainer.test_trainer import distill_term, plain_term, trainer


class Greedy:
    """A policy gradient without room for more than so many tokens."""

    __name__ = "policy_gradient"

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, inputs: LossInputs) -> TermOutput:
        if inputs.sampled_mask.sum() > self.most:
            raise torch.OutOfMemoryError("no room")
        return policy_gradient(inputs)


def greedy_trainer(most: int) -> Any:
    term = plain_term(policy_gradient)
    object.__setattr__(term, "function", Greedy(most))
    return trainer(distill_term(), term, micro_batch_tokens=400)


def test_memory_that_runs_out_halves_the_micro_batch() -> None:
    examples = random_examples(10, seed=3)
    untroubled, troubled = (
        trainer(distill_term(), plain_term(policy_gradient), micro_batch_tokens=400),
        greedy_trainer(14),
    )
    said: list[str] = []
    troubled.on_fault = lambda role, what: said.append(f"{role}: {what}")
    wanted, found = untroubled.step(examples), troubled.step(examples)
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    one, other = dict(untroubled.engine.optimizer_state()), dict(troubled.engine.optimizer_state())
    for name in one:  # after one step a tenth of the gradient
        torch.testing.assert_close(other[name]["exp_avg"], one[name]["exp_avg"], atol=1e-6, rtol=1e-4, msg=name)
    halved = [400 >> i for i in range(1, len(said) + 1)]
    assert said == [f"trainer: out of memory; trainer.micro_batch_tokens is {n} from now on" for n in halved] and said
    before = len(said)
    troubled.step(examples)
    assert len(said) == before, "it is remembered"


def test_a_rollout_that_does_not_fit_raises() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        greedy_trainer(0).step(random_examples(4))


LENGTH, CALLS = 8, [0]


def poisoned(inputs: LossInputs, *, first: int, last: int) -> TermOutput:
    """Not finite from one call to another; the completions that contracts try are shorter."""
    CALLS[0] += inputs.sampled_mask.shape[1] == LENGTH
    return TermOutput(per_token=-inputs.logprobs * (float("nan") if first <= CALLS[0] <= last else 1.0))


@pytest.mark.parametrize(("last", "steps", "code"), [(3, 8, 0), (99, 7, 130)])
def test_gradients_that_are_not_finite(
    tmp_path: Path, last: int, steps: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    CALLS[0] = 0
    objective = [{"name": "tests.trainer.test_faults:poisoned", "first": 3, "last": last}]
    config = write_config(
        tmp_path, objective=objective, contexts={}, steps=8, preflight={"enabled": False}, checkpoint={"every": 0},
        trainer={"lr": 1e-3, "micro_batch_tokens": 2000}, logging={"trackers": ["jsonl"], "tokens_every": 0},
        teacher={"name": "live"},
    )  # fmt: skip
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == code
    rows = [row for row in metrics(tmp_path / "run") if "train/skipped_updates" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert [row["train/skipped_updates"] for row in rows] == [float(3 <= step <= last) for step in range(1, steps + 1)]
    said = " ".join(capsys.readouterr().out.split())
    assert ("train/skipped_updates was above 0 for 5 steps in a row" in said) == bool(code)
    assert (tmp_path / "run" / "checkpoints" / f"step-{steps:06d}").exists()
