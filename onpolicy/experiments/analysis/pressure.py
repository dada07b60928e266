"""``onpolicy analyze pressure``: how hard a configured loss pushes epistemic markers down, to first order, before any training.

A step on the logits z of a position, dz = -dL/dz, changes the probability M of a lexicon's markers there by

    dM = sum_{v in E} p_v (dz_v - sum_w p_w dz_w)

The loss L is the config's own: terms, targets, weights, routes and denominators as in training. Summed over the rollouts and divided
by the summed M, this is one number that ranks designs before any run: negative is suppression. Neutral words under the same loss are
the control.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from onpolicy.config.load import load
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.contracts import keep_to_contracts
from onpolicy.epistemic.ids import LexiconError, span_name, tokens_of
from onpolicy.epistemic.tokens import OPPORTUNITY
from onpolicy.experiments.analysis.session import write_findings
from onpolicy.run.assemble import assemble
from onpolicy.run.check_run import training_command
from onpolicy.run.display import Display
from onpolicy.run.preflight import first_rollouts
from onpolicy.trainer.head import Head, HiddenStates
from onpolicy.trainer.totals import update_totals
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.types import STUDENT, Example, LossInputs, TrainBatch
from onpolicy.utils.tables import table
from onpolicy.utils.terminal import print_next


@dataclass(frozen=True)
class Pressure:
    """The pressure on one lexicon's markers."""

    tokens: int
    opportunities: int
    """Positions where the student gives them a probability of at least 1 %."""
    mass: float
    """Mean probability of a marker at a position."""
    relative: float
    """Sum of dM / sum of M: the relative change of the markers' mass per unit step on the logits."""
    said: float
    """The part of ``relative`` at positions where a marker was sampled."""
    unsaid: float
    """The part at opportunities where it was not: what masking sampled markers leaves in place."""


@dataclass
class GradientProbe:
    """Sits at the student's head and records the change of marker mass that the loss asks for."""

    ids: Mapping[str, Tensor]
    changes: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """[N, lexicons] dM; 0 where the loss has no gradient."""

    def attach(self, states: HiddenStates) -> HiddenStates:
        """The same states, detached from the body, with a head that reports its gradient."""
        assert isinstance(states.head, Head)
        self.changes = states.hidden.new_zeros(len(states.hidden), len(self.ids))
        return HiddenStates(states.hidden.detach().requires_grad_(), replace(states.head, on_gradient=self.note))

    @torch.no_grad()
    def note(self, rows: Tensor, logits: Tensor, gradient: Tensor) -> None:
        """dM of the tokens ``rows``, from their logits ``[n, V]`` and the gradient on them."""
        p = logits.softmax(-1)
        dz = -gradient
        moved = p * (dz - (p * dz).sum(-1, keepdim=True))
        self.changes[rows] = torch.stack([moved[:, i].sum(-1) for i in self.ids.values()], -1).to(self.changes.dtype)


def pressures(trainer: PolicyTrainer, examples: Sequence[Example]) -> dict[str, Pressure]:
    """Lexicon -> pressure, over all examples; no weight is changed.

    Args:
        trainer: with the config's objective, and the ids of each lexicon in ``marker_ids``
        examples: annotated rollouts; their spans ``<lexicon>`` say where markers were sampled
    """
    batches = list(trainer.batching.batches(examples))
    totals = update_totals(trainer.objective, batches, lambda: map(trainer.inputs, batches), trainer.collectives)
    probe = GradientProbe(trainer.marker_ids)
    found = []
    for batch in batches:
        inputs = trainer.inputs(batch, through=probe.attach)
        trainer.objective.loss(inputs, totals).backward()  # type: ignore[no-untyped-call]
        mass = torch.stack([inputs.marker_mass[STUDENT, name].exp()[batch.sampled_mask] for name in probe.ids], -1)
        found.append((probe.changes, mass, _said(batch, inputs, tuple(trainer.marker_ids))))
    change, mass, said = (torch.cat(column).double() for column in zip(*found, strict=True))
    trainer.engine.discard_gradient()
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


def analyze_pressure(config_path: Path, overrides: Sequence[str], output: Path | None) -> int:
    """Prints the pressure of the config's loss on each lexicon's markers."""
    found, rollouts = measure_pressure(resolve(load(config_path, overrides)))
    Console().print(pressure_table(found))
    write_findings(output, config_path, overrides, rollouts=rollouts, pressure={k: asdict(v) for k, v in found.items()})
    print_next(training_command(config_path, overrides))
    return 0


def measure_pressure(resolved: ResolvedConfig) -> tuple[dict[str, Pressure], int]:
    """Lexicon -> pressure, and the number of rollouts: one step's, sampled from the reference model.

    Raises:
        LexiconError: no lexicon has a marker that is one token of the model's tokenizer.
    """
    keep_to_contracts(resolved)
    with tempfile.TemporaryDirectory() as folder:
        run = assemble(resolved, Path(folder), Display(1))
        try:
            examples = first_rollouts(run, resolved)
            ids = tokens_of(run.log.renderer.tokenizer, resolved.config.epistemic.lexicons)
            if not ids:
                raise LexiconError(
                    "epistemic.lexicons: none has a marker that is a single token of this model's tokenizer"
                )
            return run.trainer.apply(_pressures_on, ids, examples), len(examples)
        finally:
            run.close()


def _pressures_on(
    trainer: PolicyTrainer, ids: Mapping[str, Sequence[int]], examples: Sequence[Example]
) -> dict[str, Pressure]:
    """For ``Trainer.apply``: ``pressures`` on the lexicons with these tokens, as well as on those that the trainer knows."""
    trainer.marker_ids |= {name: torch.tensor(i, device=trainer.device) for name, i in ids.items()}
    return pressures(trainer, examples)


def pressure_table(found: Mapping[str, Pressure]) -> Table:
    return table(
        "suppression pressure: relative change of the markers' probability mass per unit step on the logits; negative suppresses",
        [
            "lexicon",
            "pressure",
            "where a marker was sampled",
            "where one was likely",
            "mass per token",
            "opportunities",
        ],
        (
            (
                name,
                f"{p.relative:+.3g}",
                f"{p.said:+.3g}",
                f"{p.unsaid:+.3g}",
                f"{p.mass:.2e}",
                f"{p.opportunities} of {p.tokens}",
            )
            for name, p in found.items()
        ),
    )
