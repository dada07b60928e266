"""One rollout token by token, in a compact form: what the token page shows."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onpolicy.data.alignment import TokenAlignment
from onpolicy.data.rendering import Renderer
from onpolicy.losses.objective import Term
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.types import Example, LossInputs

SCALE = 100.0
"""Numbers are kept as 16-bit integers in hundredths: nats with a resolution of 0.01, at most 327."""


SHOWN = ("token_weight", "advantage")
"""The per-token metrics of a loss term that are kept, in addition to its loss."""


@torch.no_grad()
def token_record(trainer: PolicyTrainer, renderer: Renderer, example: Example) -> dict[str, Any]:
    """What teacher and student make of each token, under the weights now in the trainer.

    Arrays ``[T]`` are base64 of little-endian int16 hundredths: ``logprob`` and ``entropy`` of the student; by context the
    teacher's ``logprob`` and ``entropy``; by loss term the ``loss`` of each token, its ``token_weight`` and ``advantage`` (one
    number where all tokens have the same); ``marks`` are bits, 1 on markers, and so is ``observed``, 1 on what an environment said, where
    one did: the numbers there mean nothing.
    """
    inputs = trainer.inputs(trainer.batching.batch([example]))
    contexts = {
        context: {"logprob": packed(scores.logprobs[0]), "entropy": packed(scores.entropy[0])}
        for context, scores in inputs.teacher.items()
        if context in example.teacher_prompt_ids
    }
    return {
        "prompt_id": example.prompt.id,
        "reward": example.reward,
        "advantage": example.advantage,
        "finish_reason": example.rollout.finish_reason,
        "tokens": TokenAlignment(renderer).split(example.rollout.completion_ids),
        "logprob": packed(inputs.logprobs[0]),
        "entropy": packed(inputs.entropy[0]),
        "contexts": contexts,
        "terms": {
            t.name: _of_term(t, inputs)
            for t in trainer.objective.terms
            if not t.reads_update and t.candidates(inputs).any()
        },
        **({"observed": bits([not s for s in example.rollout.sampled_mask])} if example.rollout.sampled_mask else {}),
        "marks": {name: bits(marks) for name, marks in example.spans.items() if any(marks)},
        "student_prompt": renderer.decode(example.rollout.prompt_ids),
        "teacher_prompts": {context: renderer.decode(ids) for context, ids in example.teacher_prompt_ids.items()},
    }


def _of_term(term: Term, inputs: LossInputs) -> dict[str, str | float]:
    output, mask = term.evaluate(inputs)
    loss = float(term.weight) * torch.where(mask, output.per_token, 0.0)
    found = {"loss": loss} | {name: output.metrics[name] for name in SHOWN if name in output.metrics}
    return {name: _same_or_packed(values[0]) for name, values in found.items()}


def _same_or_packed(values: Tensor) -> str | float:
    return float(values[0]) if bool((values == values[0]).all()) else packed(values)


def packed(values: Tensor) -> str:
    """[T] as base64."""
    limit = np.iinfo(np.int16).max
    hundredths = np.nan_to_num(values.detach().double().cpu().numpy() * SCALE)
    return base64.b64encode(np.clip(np.rint(hundredths), -limit, limit).astype("<i2").tobytes()).decode()


def bits(marks: Sequence[bool]) -> str:
    """[T] as base64, eight tokens a byte, the first in the highest bit."""
    return base64.b64encode(np.packbits(np.asarray(marks, dtype=bool)).tobytes()).decode()


def unpacked(text: str) -> list[float]:
    """[T] the inverse of ``packed``."""
    return [float(v) / SCALE for v in np.frombuffer(base64.b64decode(text), dtype="<i2")]
