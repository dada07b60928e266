"""Per-token numbers, laid out as the loss looks at them and where it looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.objective import MetricAccumulator
from onpolicy.trainer.chunked_head import TokenStats
from onpolicy.types import REF, LossInputs, TeacherScores, TrainBatch


def stacked(batch: TrainBatch, old: Mapping[int, Tensor]) -> Tensor | None:
    """The examples' old log-probs ``[B, T]``; None where none were computed because nothing has moved yet."""
    if not old:
        return None
    flat = torch.cat([old[id(e)] for e in batch.examples])
    return spread(flat, batch.sampled_mask)


def loss_inputs(batch: TrainBatch, readings: TokenStats, old_logprobs: Tensor | None) -> LossInputs:
    """Lays per-token numbers ``[N]`` out as ``[B, T]``."""
    mask = batch.sampled_mask
    logprobs = spread(readings.logprobs, mask)
    return LossInputs(
        logprobs=logprobs,
        entropy=spread(readings.entropy, mask),
        old_logprobs=logprobs.detach() if old_logprobs is None else old_logprobs,
        rollout_logprobs=batch.rollout_logprobs,
        ref_logprobs=spread(readings.teacher_logprobs[REF], mask) if REF in readings.teacher_logprobs else None,
        ref_entropy=spread(readings.teacher_entropy[REF], mask) if REF in readings.teacher_entropy else None,
        advantages=batch.advantages,
        sampled_mask=mask,
        teacher={
            name: TeacherScores(
                logprobs=spread(readings.teacher_logprobs[name], mask),
                entropy=spread(readings.teacher_entropy[name], mask),
                mask=own,
            )
            for name, own in batch.context_masks.items()
        },
        divergences={comparison: spread(values, mask) for comparison, values in readings.divergences.items()},
        marker_mass={who: spread(values, mask) for who, values in readings.marker_mass.items()},
        routes=batch.routes,
        spans=batch.spans,
    )


def observe(inputs: LossInputs, tally: MetricAccumulator, telemetry: TokenTelemetry | None) -> None:
    """What is measured of every micro-batch, whatever the loss."""
    if telemetry is not None:
        telemetry.observe(inputs)
    tally.add("policy/entropy", inputs.entropy, inputs.sampled_mask)
    for context, scores in inputs.teacher.items():
        tally.add(f"teacher/{context}/entropy", scores.entropy, scores.mask)
        tally.add(f"teacher/{context}/gap", scores.logprobs - inputs.logprobs.detach(), scores.mask)
    tally.add("rollout/logprob_gap", (inputs.old_logprobs - inputs.rollout_logprobs).abs(), inputs.sampled_mask)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """[N] -> [B, T]: the n-th marked position gets the n-th number, the others 0."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def to_device(batch: TrainBatch, device: torch.device) -> TrainBatch:
    return TrainBatch(**{f.name: _moved(getattr(batch, f.name), device) for f in fields(batch)})


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(inner, device) for name, inner in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
