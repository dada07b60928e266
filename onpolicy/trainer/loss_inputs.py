"""Per-token numbers ``[N]`` as the ``[B, T]`` tensors that the loss reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onpolicy.epistemic.tokens import TokenTelemetry
from onpolicy.losses.objective import MetricAccumulator
from onpolicy.trainer.chunked_head import TokenStats
from onpolicy.types import REF, LossInputs, TeacherScores, TrainBatch


def stacked(batch: TrainBatch, old: Sequence[Tensor] | None, indices: Sequence[int]) -> Tensor | None:
    """Old log-probabilities ``[B, T]`` of a micro-batch; None if none were computed because no weight has moved yet.

    Args:
        batch: B rollouts
        old: ``[T]`` of every rollout of the update
        indices: which of them are the batch's
    """
    if old is None:
        return None
    return spread(torch.cat([old[i] for i in indices]), batch.sampled_mask)


def loss_inputs(batch: TrainBatch, stats: TokenStats, old_logprobs: Tensor | None) -> LossInputs:
    """The inputs of the loss; the current log-probabilities are the old ones if ``old_logprobs`` is None.

    Old log-probabilities are those at temperature 1: at another one, the current ones stand for them.
    """
    mask = batch.sampled_mask
    logprobs = spread(stats.logprobs, mask)
    return LossInputs(
        logprobs=logprobs,
        entropy=spread(stats.entropy, mask),
        old_logprobs=logprobs.detach() if old_logprobs is None else old_logprobs,
        rollout_logprobs=batch.rollout_logprobs,
        ref_logprobs=spread(stats.teacher_logprobs[REF], mask) if REF in stats.teacher_logprobs else None,
        ref_entropy=spread(stats.teacher_entropy[REF], mask) if REF in stats.teacher_entropy else None,
        advantages=batch.advantages,
        sampled_mask=mask,
        teacher={
            name: TeacherScores(
                logprobs=spread(stats.teacher_logprobs[name], mask),
                entropy=spread(stats.teacher_entropy[name], mask),
                mask=own,
            )
            for name, own in batch.context_masks.items()
        },
        divergences={comparison: spread(values, mask) for comparison, values in stats.divergences.items()},
        marker_mass={who: spread(values, mask) for who, values in stats.marker_mass.items()},
        routes=batch.routes,
        spans=batch.spans,
        tempered={temperature: loss_inputs(batch, own, None) for temperature, own in stats.tempered.items()},
    )


def observe(inputs: LossInputs, metrics: MetricAccumulator, telemetry: TokenTelemetry | None) -> None:
    """Adds what is measured on every micro-batch, whatever the loss."""
    if telemetry is not None:
        telemetry.observe(inputs)
    metrics.add("policy/entropy", inputs.entropy, inputs.sampled_mask)
    for context, scores in inputs.teacher.items():
        metrics.add(f"teacher/{context}/entropy", scores.entropy, scores.mask)
        metrics.add(f"teacher/{context}/gap", scores.logprobs - inputs.logprobs.detach(), scores.mask)
    metrics.add("rollout/logprob_gap", (inputs.old_logprobs - inputs.rollout_logprobs).abs(), inputs.sampled_mask)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """[N] -> [B, T]: the n-th position of the mask gets the n-th number, all others 0."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)
