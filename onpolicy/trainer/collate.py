"""Examples to tensors, by the alignment rule of ``onpolicy.types``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onpolicy.types import Example, Rollout, TrainBatch


def collate(
    examples: Sequence[Example], *, contexts: Sequence[str], routes: Sequence[str] = (), spans: Sequence[str] = ()
) -> TrainBatch:
    """One micro-batch, in the order given.

    Args:
        examples: B rollouts with their advantages and privileged prompts
        contexts: the contexts that every batch has a mask for, whether or not a rollout has them
        routes: the loss terms, each with the fraction of a rollout that goes to it
        spans: the names under which completion tokens are marked
    """
    completions = [e.rollout.completion_ids for e in examples]
    width = max(map(len, completions))  # T
    sampled_mask = _right(
        [e.rollout.sampled_mask or [True] * len(e.rollout.completion_ids) for e in examples], width, torch.bool
    )
    logprobs = _right([e.rollout.rollout_logprobs for e in examples], width, torch.float32)
    advantages = [[e.advantage] * len(c) for e, c in zip(examples, completions, strict=True)]
    has_context = {context: torch.tensor([context in e.teacher_prompt_ids for e in examples]) for context in contexts}
    return TrainBatch(
        examples=tuple(examples),
        completion_ids=_right(completions, width, torch.long),
        sampled_mask=sampled_mask,
        rollout_logprobs=logprobs.masked_fill(~sampled_mask, 0.0),
        advantages=_right(advantages, width, torch.float32).masked_fill(~sampled_mask, 0.0),
        context_masks={context: sampled_mask & rows[:, None] for context, rows in has_context.items()},
        routes={term: torch.tensor([e.routes.get(term, 1.0) for e in examples]) for term in routes},
        spans={name: _right([e.spans[name] for e in examples], width, torch.bool) for name in spans},
    )


def select_sampled(hidden: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
    """The sampled tokens' rows of ``hidden``, which has one for each completion token of the rollouts, one after the other."""
    if not any(rollout.sampled_mask for rollout in rollouts):
        return hidden
    kept = [r.sampled_mask or (True,) * len(r.completion_ids) for r in rollouts]
    return hidden[torch.tensor([sampled for row in kept for sampled in row], device=hidden.device)]


def _right(rows: Sequence[Sequence[float]], width: int, dtype: torch.dtype) -> Tensor:
    """Padded on the right with 0 or False."""
    return torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], dtype=dtype)
