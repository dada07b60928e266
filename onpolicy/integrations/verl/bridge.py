"""From verl's micro-batches to the losses of ``onpolicy.losses.terms``, and back to what verl expects: a scalar and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.integrations.verl.rows import padded, train_batch
from onpolicy.losses.objective import MetricAccumulator, Objective, Totals
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.loss_inputs import loss_inputs, observe
from onpolicy.types import Metrics, TrainBatch

PREFIX = "onpolicy/"
"""Prefix of our metrics' names, until they reach the trainer."""


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
        marker_ids: Mapping[str, Sequence[int]],
        telemetry: TokenTelemetry | None,
        together: SingleProcess,
        device: torch.device | str,
    ) -> None:
        self.objective, self.contexts, self.spans = objective, tuple(contexts), tuple(spans)
        self.telemetry, self.together = telemetry, together
        self.marker_ids = {name: torch.tensor(ids, device=device) for name, ids in marker_ids.items()}
        self._totals = Totals({})
        self.empty = False
        """Whether no term has a token in the update under way."""
        self._tally = MetricAccumulator()

    def begin(self, data: TensorDict) -> None:
        """Counts the tokens that each term is averaged over, in the whole update and on all ranks."""
        batch = _real(self.batch(data))
        tokens = sum(int(term.candidates(batch).sum()) for term in self.objective.terms)
        self.empty = not self.together.all_sum({"": tokens})[""]
        own = self.objective.count([batch])
        self._totals = replace(own, denominators=self.together.all_sum(own.denominators))
        self._tally = MetricAccumulator()

    def loss(self, model_output: Mapping[str, Any], data: TensorDict, dp_group: Any = None) -> tuple[Tensor, Metrics]:
        """This rank's share of the loss, from the outputs of ``TeachingEngine``."""
        batch = self.batch(data)
        stats = token_stats(
            model_output["student"],
            model_output["teachers"],
            batch.completion_ids[batch.sampled_mask],
            self.objective.comparisons,
            marker_ids=self.marker_ids,
            temperatures=self.objective.temperatures,
        )
        old = padded(data["old_log_probs"]).float() if "old_log_probs" in data.keys() else None  # noqa: SIM118
        inputs = loss_inputs(batch, stats, old)
        if "rollout_log_probs" not in data.keys():  # noqa: SIM118 the sampler did not say: it counts as the trainer
            inputs = replace(inputs, rollout_logprobs=inputs.old_logprobs)
        loss = self.objective.loss(inputs, self._totals, self._tally) * self.together.size
        observe(inputs, self._tally, self.telemetry)
        return loss, {}

    def end(self) -> dict[str, list[float]]:
        """Means over all ranks' tokens, in lists: verl expects one value per micro-batch."""
        self.together.merge(self._tally, self.telemetry)
        found = self._tally.means() | (self.telemetry.metrics() if self.telemetry else {})
        return {f"{PREFIX}{name}": [value] for name, value in found.items()}

    def batch(self, data: TensorDict) -> TrainBatch:
        return train_batch(data, contexts=self.contexts, terms=self.objective.routes, spans=self.spans)


def _real(batch: TrainBatch) -> TrainBatch:
    """Without verl's padding rows, in which nothing was sampled."""
    keep = batch.sampled_mask.any(-1)
    return TrainBatch(**{f.name: _kept(getattr(batch, f.name), keep) for f in fields(batch)})


def _kept(value: Any, keep: Tensor) -> Any:
    if isinstance(value, Mapping):
        return {name: inner[keep] for name, inner in value.items()}
    return value[keep] if isinstance(value, Tensor) else value
