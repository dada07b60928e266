"""Examples -> tensors; the alignment rule of ``onpolicy.types`` is laid down here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onpolicy.types import Example, TeacherView, TrainBatch


def collate(
    examples: Sequence[Example],
    *,
    views: Sequence[str],
    pad_id: int,
    routes: Sequence[str] = (),
    spans: Sequence[str] = (),
) -> TrainBatch:
    """One micro-batch, in the order given.

    Args:
        examples: B rollouts with their advantages and privileged prompts
        views: the views every batch carries, whether or not a rollout has them
        pad_id: fills the padding; never attended to, never scored
        routes: the loss terms that ask how much of a rollout is theirs
        spans: the names under which completion tokens are marked
    """
    completions = [e.rollout.completion_ids for e in examples]
    width = max(map(len, completions))  # T
    input_ids, attention_mask = _join([e.rollout.prompt_ids for e in examples], completions, width, pad_id)
    response_mask = _right([[True] * len(c) for c in completions], width, False, torch.bool)
    advantages = [[e.advantage] * len(c) for e, c in zip(examples, completions, strict=True)]
    return TrainBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        completion_ids=_right(completions, width, pad_id, torch.long),
        response_mask=response_mask,
        rollout_logprobs=_right([e.rollout.rollout_logprobs for e in examples], width, 0.0, torch.float32),
        advantages=_right(advantages, width, 0.0, torch.float32),
        views={view: _view(examples, view, width, response_mask, pad_id) for view in views},
        routes={term: torch.tensor([e.routes.get(term, 1.0) for e in examples]) for term in routes},
        spans={name: _right([e.spans[name] for e in examples], width, False, torch.bool) for name in spans},
    )


def _view(examples: Sequence[Example], view: str, width: int, response_mask: Tensor, pad_id: int) -> TeacherView:
    rows = [i for i, e in enumerate(examples) if view in e.teacher_prompt_ids]
    chosen = [examples[i] for i in rows]
    input_ids, attention_mask = _join(
        [e.teacher_prompt_ids[view] for e in chosen], [e.rollout.completion_ids for e in chosen], width, pad_id
    )
    index = torch.tensor(rows, dtype=torch.long)
    mask = torch.zeros_like(response_mask)
    mask[index] = response_mask[index]
    return TeacherView(rows=index, input_ids=input_ids, attention_mask=attention_mask, mask=mask)


def _join(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Prompts end where completions begin: ``[pad.. prompt | completion ..pad]``."""
    left = max(map(len, prompts), default=0)
    ids, mask = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        before, after = left - len(prompt), width - len(completion)
        ids.append([pad_id] * before + [*prompt, *completion] + [pad_id] * after)
        mask.append([0] * before + [1] * (len(prompt) + len(completion)) + [0] * after)
    shape = (len(prompts), left + width)
    return torch.tensor(ids, dtype=torch.long).view(shape), torch.tensor(mask, dtype=torch.long).view(shape)


def _right(rows: Sequence[Sequence[float]], width: int, fill: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor([[*row, *([fill] * (width - len(row)))] for row in rows], dtype=dtype)
