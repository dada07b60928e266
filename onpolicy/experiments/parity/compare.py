"""Ours against theirs: one finding a case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from onpolicy.experiments.parity.fixtures import Accepted, Case
from onpolicy.experiments.parity.update import Update, compute, config_of
from onpolicy.trainer.build import teacher_rule

Verdict = Literal["equal", "accepted", "differs", "not expressible"]


@dataclass(frozen=True)
class Finding:
    """What comparing one case found."""

    case: str
    verdict: Verdict
    """``accepted``: differs, and the cause is in accepted.json. ``not expressible``: a micro-batch of several rows, which no config
    of a trainer whose gradient does not depend on micro-batches can have."""
    loss: float | None = None
    """Largest relative difference of the loss."""
    gradient: float | None = None
    """That of the gradient on the student's logits, or of the teacher's weights."""
    advantages: float | None = None
    notes: list[str] = field(default_factory=list)
    """Decisions about rows that differ, and causes."""


def compare_case(case: Case, accepted: Accepted | None = None) -> Finding:
    """Computes a case's update from its config and compares what the case says counts.

    Args:
        case: the golden case
        accepted: the committed difference; a difference in overrides counts as accepted only if it is nothing else
    """
    run = KINDS[case.meta["kind"]]
    found = run(case, ())
    if found.verdict != "differs" or accepted is None:
        return found
    explained = not accepted.overrides or run(case, accepted.overrides).verdict == "equal"
    cause = f"{accepted.cause} (equal with {' '.join(accepted.overrides)})" if accepted.overrides else accepted.cause
    verdict: Verdict = "accepted" if explained else "differs"
    return Finding(case.name, verdict, found.loss, found.gradient, found.advantages, [*found.notes, cause])


def _compute_and_compare(case: Case, overrides: Sequence[str]) -> Finding:
    return compare_update(case, compute(case, overrides))


def compare_update(case: Case, ours: Update) -> Finding:
    """An update that was computed on a case, beside the published one."""
    what, arrays = case.meta["compare"], case.arrays
    loss = gradient = advantages = None
    counted = []
    if "gradient" in what:
        assert ours.gradient is not None and ours.loss is not None
        theirs = case.tensor("out_gradient")
        factor = _factor(ours.gradient, theirs, case.meta["allowed_factors"])
        gradient = relative(ours.gradient, theirs * factor)
        counted.append(gradient)
        if "loss" in what:
            expected = float(arrays["out_loss"]) * factor
            loss = relative(ours.loss, torch.tensor(expected, dtype=torch.float64))
            if abs(float(ours.loss) - expected) >= case.meta["loss_absolute"]:
                counted.append(loss)
            elif loss >= case.meta["tolerance"]:
                loss = 0.0  # a sum that cancels is compared absolutely
    if "advantages" in what:
        given = torch.tensor(arrays["out_advantages"][ours.rows]).double()
        advantages = min(relative(ours.advantages, given * factor) for factor in case.meta["allowed_factors"])
        counted.append(0.0 if float((ours.advantages - given).abs().max()) < 1e-9 else advantages)
    verdict: Verdict = "equal" if all(d < case.meta["tolerance"] for d in counted) else "differs"
    if verdict == "differs" and not case.meta["expressible"]:
        verdict = "not expressible"
    return Finding(case.name, verdict, loss, gradient, advantages, ours.notes)


def _compare_teacher(case: Case, overrides: Sequence[str]) -> Finding:
    """The teacher's weights after each of several updates."""
    rule = teacher_rule(config_of(case.config, {}, overrides))
    teacher, student, worst = torch.tensor(case.arrays["teacher_before"]), torch.tensor(case.arrays["student"]), 0.0
    assert rule.update is not None
    for step, expected in enumerate(case.arrays["out_teacher_after"], 1):
        rule.update(teacher, student, None, step)
        worst = max(worst, relative(teacher, torch.tensor(expected)))
        student = student + case.settings["student_moves_by_after_each_update"]
    return Finding(case.name, "equal" if worst < case.meta["tolerance"] else "differs", gradient=worst)


KINDS: dict[str, Callable[[Case, Sequence[str]], Finding]] = {"loss": _compute_and_compare, "ema": _compare_teacher}
"""What a case is about -> how it is compared."""


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference over the largest absolute value of either; 0 where both are."""
    ours, theirs = ours.double(), theirs.double()
    size = max(float(ours.abs().max()), float(theirs.abs().max())) if ours.numel() else 0.0
    return float((ours - theirs).abs().max()) / size if size > 1e-12 else 0.0


def _factor(ours: Tensor, theirs: Tensor, allowed: list[float]) -> float:
    """The allowed constant factor that is nearest to the projection of our gradient on theirs."""
    power = float((theirs * theirs).sum())
    scale = float((ours * theirs).sum()) / power if power > 1e-24 else 1.0
    return min(allowed, key=lambda factor: abs(factor - scale))
