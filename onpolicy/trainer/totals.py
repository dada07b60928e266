"""What each micro-batch has to know of the whole optimizer update, on all ranks, before its first gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from onpolicy.losses.objective import Objective, Totals
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.types import LossInputs, TrainBatch
from onpolicy.utils.device_sums import read_counts


def has_tokens(objective: Objective, batches: Sequence[TrainBatch], collectives: SingleProcess) -> bool:
    """Whether any term may have a token on any rank."""
    (own,) = read_counts([sum(term.candidates(batch).sum() for batch in batches for term in objective.terms)])
    return collectives.all_sum({"": own})[""] > 0


@torch.no_grad()
def update_totals(
    objective: Objective,
    batches: Sequence[TrainBatch],
    read: Callable[[], Iterable[LossInputs]],
    collectives: SingleProcess,
) -> Totals:
    """Denominators of all ranks, and the answers to what the terms ask for about the update.

    Args:
        objective: the loss
        batches: the update's micro-batches on this rank
        read: yields what the models say about each of them; called only if the objective needs a survey
        collectives: of the ranks
    """
    gather = collectives.all_gather
    own = objective.survey(list(read()), gather) if objective.needs_survey else objective.count(batches)
    return over_ranks(own, collectives)


def over_ranks(own: Totals, collectives: SingleProcess) -> Totals:
    """A rank's totals with the denominators of all ranks; the answers are those of all already."""
    return replace(own, denominators=collectives.all_sum(own.denominators))
