"""From verl's micro-batches to the losses of ``onpolicy.losses.terms``, and back to what verl expects: a scalar and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.integrations.verl.rows import floats, sampled, train_batch
from onpolicy.integrations.verl.shared_prompts import Count
from onpolicy.losses.objective import MetricAccumulator, Objective, Totals
from onpolicy.trainer.chunked_head import TokenStats, token_stats
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.head import HiddenStates
from onpolicy.trainer.loss_inputs import loss_inputs, observe
from onpolicy.trainer.totals import has_tokens, over_ranks
from onpolicy.types import LossInputs, Metrics, TrainBatch

PREFIX = "onpolicy/"
"""Prefix of our metrics' names, until they reach the trainer."""
READERS = STUDENT, TEACHER = "student", "teacher"
"""Whose tokens are counted; the reference model's are among the teacher's."""
APART = "tokens_apart"
"""Total of the tokens that would be computed if no row shared its prompt."""


class Bridge:
    """The objective over the micro-batches of one optimizer update.

    Its ``loss`` is verl's loss function. The gradient of all ranks' micro-batches is that of the embedded trainer on the same
    rollouts: verl averages over ranks, so each rank's share is multiplied by their number.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        contexts: Sequence[str],
        spans: Sequence[str],
        marker_ids: Mapping[str, Tensor],
        telemetry: TokenTelemetry | None,
        together: SingleProcess,
        sequence_parallel: int = 1,
        unknown: Sequence[str] = (),
    ) -> None:
        """
        Args:
            unknown: metrics of numbers that nobody knows
            together: the ranks that have rollouts of their own
            sequence_parallel: ranks that share the rollouts of one of those
        """
        self.objective, self.contexts, self.spans = objective, tuple(contexts), tuple(spans)
        self.telemetry, self.together = telemetry, together
        self._ranks = together.size * sequence_parallel
        """Over which FSDP takes the mean of gradients."""
        self.marker_ids = marker_ids
        self._totals = Totals({})
        self._unknown = frozenset(unknown)
        self.empty = False
        """Whether no term has a token in the update under way."""
        self._tally = MetricAccumulator()
        self._read: list[LossInputs] = []
        """What ``survey`` has seen of the update under way."""

    @property
    def needs_survey(self) -> bool:
        """Whether every micro-batch of the update under way has to be read (``survey``) before the first gradient."""
        return self.objective.needs_survey and not self.empty

    def begin(self, data: TensorDict) -> None:
        """Counts the tokens that each term is averaged over, in the whole update and on all ranks; or leaves that to ``survey``."""
        batch = _real(self.batch(data))
        self.empty = not has_tokens(self.objective, [batch], self.together)
        self._tally, self._read = MetricAccumulator(), []
        if not self.objective.needs_survey:
            self._totals = over_ranks(self.objective.count([batch]), self.together)

    def survey(self, model_output: Mapping[str, Any], data: TensorDict, dp_group: Any = None) -> tuple[Tensor, Metrics]:
        """In the place of ``loss`` where nothing is trained yet: keeps what the models say about a micro-batch."""
        real = self.batch(data).sampled_mask.any(-1)
        if bool(real.any()):
            self._read.append(self._inputs(model_output, data, real))
        return torch.zeros((), device=real.device), {}

    def end_survey(self) -> None:
        """From what all ranks have read, what their micro-batches have to know of the update."""
        self._totals = over_ranks(self.objective.survey(self._read, self.together.all_gather), self.together)
        self._read = []

    def loss(self, model_output: Mapping[str, Any], data: TensorDict, dp_group: Any = None) -> tuple[Tensor, Metrics]:
        """This rank's share of the loss, from the outputs of ``TeachingEngine``; 0 where ``begin`` found the update empty."""
        inputs = self._inputs(model_output, data)
        observe(inputs, self._tally, self.telemetry)
        if self.empty:
            return inputs.logprobs.sum() * 0.0, {}
        return self.objective.loss(inputs, self._totals, self._tally) * self._ranks, {}

    def stats(
        self,
        student: HiddenStates,
        teachers: Mapping[str, HiddenStates],
        data: TensorDict,
        own: Tensor | slice = slice(None),
    ) -> TokenStats:
        """What student and teachers say about the sampled tokens of a micro-batch.

        Args:
            own: which of them their states are of
        """
        ids = data["responses"].values()[sampled(data)]
        return token_stats(
            student,
            teachers,
            ids[own],
            self.objective.comparisons,
            marker_ids=self.marker_ids,
            temperatures=self.objective.temperatures,
        )

    def _inputs(
        self, model_output: Mapping[str, Any], data: TensorDict, rows: Tensor | slice = slice(None)
    ) -> LossInputs:
        """Some rows of a micro-batch; those that are left out have no sampled token, so the models' outputs have nothing of them."""
        batch = _rows(self.batch(data), rows)
        names = data.keys()  # a TensorDict iterates over rows
        old = floats(data["old_log_probs"])[rows] if "old_log_probs" in names else None
        inputs = loss_inputs(batch, model_output["stats"], old)
        # where the sampler did not say, it counts as the trainer
        return inputs if "rollout_log_probs" in names else replace(inputs, rollout_logprobs=inputs.old_logprobs)

    def count(self, reader: str, tokens: Count) -> None:
        """Adds what one of ``READERS`` has read to what is logged of the update under way."""
        if tokens.apart:
            self._tally.count(f"{reader}/tokens_computed", tokens.computed)
            self._tally.count(f"{reader}/{APART}", tokens.apart)

    def end(self) -> dict[str, list[float]]:
        """Means over all ranks' tokens, in lists: verl expects one value per micro-batch."""
        self.together.merge(self._tally, self.telemetry)
        found = self._tally.means() | (self.telemetry.metrics() if self.telemetry else {})
        for reader in READERS:
            if (apart := found.pop(f"{reader}/{APART}", 0.0)) > 0.0:
                found[f"{reader}/tokens_saved"] = 1.0 - found[f"{reader}/tokens_computed"] / apart
        return {f"{PREFIX}{name}": [value] for name, value in found.items() if name not in self._unknown}

    def batch(self, data: TensorDict) -> TrainBatch:
        return train_batch(data, contexts=self.contexts, terms=self.objective.routes, spans=self.spans)


def _real(batch: TrainBatch) -> TrainBatch:
    """Without verl's padding rows, in which nothing was sampled."""
    return _rows(batch, batch.sampled_mask.any(-1))


def _rows(batch: TrainBatch, keep: Tensor | slice) -> TrainBatch:
    return TrainBatch(**{f.name: _kept(getattr(batch, f.name), keep) for f in fields(batch)})


def _kept(value: Any, keep: Tensor | slice) -> Any:
    if isinstance(value, Mapping):
        return {name: inner[keep] for name, inner in value.items()}
    return value[keep] if isinstance(value, Tensor) else value
