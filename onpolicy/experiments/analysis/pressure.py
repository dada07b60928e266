"""How hard a configured loss pushes the markers of doubt down, to first order and before any training.

A step on the logits z of a position, dz = -dL/dz, changes the probability M of a lexicon's markers there by

    dM = sum_{v in E} p_v (dz_v - sum_w p_w dz_w)

The loss L is the config's own: terms, targets, weights, routes and denominators as in training. Summed over the rollouts and set
in relation to the summed M this is one number that orders designs before any run: negative is suppression. Neutral words
under the same loss are the control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from onpolicy.epistemic.ids import span_name
from onpolicy.epistemic.tokens import OPPORTUNITY
from onpolicy.trainer.chunked_head import Head, HiddenStates
from onpolicy.trainer.trainer import LocalTrainer
from onpolicy.types import STUDENT, Example, LossInputs, TrainBatch


@dataclass(frozen=True)
class Pressure:
    """On one lexicon's markers."""

    tokens: int
    opportunities: int
    """Positions where the student gives them at least 1 %."""
    mass: float
    """Mean probability of a marker at a position."""
    relative: float
    """Sum of dM over the sum of M: the relative change of the markers' mass for a unit step on the logits."""
    said: float
    """The part of ``relative`` at positions where a marker was sampled."""
    unsaid: float
    """The part at opportunities where it was not: what masking sampled markers leaves in place."""


@dataclass
class GradientProbe:
    """Stands at the student's head and notes what the loss asks of its logits."""

    ids: Mapping[str, Tensor]
    changes: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """[N, lexicons] dM; 0 where the loss asks nothing."""

    def __call__(self, states: HiddenStates) -> HiddenStates:
        """The same states, cut off from the body, with a head that reports its gradient."""
        assert isinstance(states.head, Head)
        self.changes = states.hidden.new_zeros(len(states.hidden), len(self.ids))
        return HiddenStates(states.hidden.detach().requires_grad_(), replace(states.head, watch=self.note))

    @torch.no_grad()
    def note(self, rows: Tensor, logits: Tensor, gradient: Tensor) -> None:
        """dM of the tokens ``rows``, from their logits ``[n, V]`` and the gradient on them."""
        p = logits.softmax(-1)
        dz = -gradient
        moved = p * (dz - (p * dz).sum(-1, keepdim=True))
        self.changes[rows] = torch.stack([moved[:, i].sum(-1) for i in self.ids.values()], -1).to(self.changes.dtype)


def pressures(trainer: LocalTrainer, examples: Sequence[Example]) -> dict[str, Pressure]:
    """By lexicon, over all examples; no weight is changed.

    Args:
        trainer: with the config's objective, and the ids of each lexicon in ``marker_ids``
        examples: annotated rollouts; their spans ``<lexicon>`` say where markers were sampled
    """
    batches = list(trainer.batches(examples))
    denominators = trainer.objective.denominators(batches)
    watch = GradientProbe(trainer.marker_ids)
    found = []
    for batch in batches:
        inputs = trainer.inputs(batch, through=watch)
        trainer.objective(inputs, denominators).backward()  # type: ignore[no-untyped-call]
        mass = torch.stack([inputs.marker_mass[STUDENT, name].exp()[batch.sampled_mask] for name in watch.ids], -1)
        found.append((watch.changes, mass, _said(batch, inputs, tuple(trainer.marker_ids))))
    change, mass, said = (torch.cat(column).double() for column in zip(*found, strict=True))
    trainer.optimizer.zero_grad(set_to_none=True)
    return {name: _pressure(change[:, i], mass[:, i], said[:, i] > 0) for i, name in enumerate(trainer.marker_ids)}


def _said(batch: TrainBatch, inputs: LossInputs, lexicons: Sequence[str]) -> Tensor:
    """[N, lexicons] whether a marker was sampled."""
    return torch.stack([inputs.spans[span_name(name)][batch.sampled_mask] for name in lexicons], -1)


def _pressure(change: Tensor, mass: Tensor, said: Tensor) -> Pressure:
    total = mass.sum().clamp(min=1e-30)
    unsaid = ~said & (mass >= OPPORTUNITY)
    return Pressure(
        tokens=len(mass),
        opportunities=int((mass >= OPPORTUNITY).sum()),
        mass=float(mass.mean()),
        relative=float(change.sum() / total),
        said=float(change[said].sum() / total),
        unsaid=float(change[unsaid].sum() / total),
    )
