"""verl's rows as the types of ``onpolicy.types``, and examples as columns for verl's workers.

A row is one trajectory, or one segment of a conversation with an environment (``conversation_rows``): ``prompts`` and ``responses`` without
padding, ``response_mask`` with a 0 for each token of the response that the policy did not sample (e.g. the output of a tool), the columns
of the dataset, and what the reward said.
The columns that are added to verl's own, one tensor per row:

    onpolicy_prompt_<context>   [P'] ids that the teacher reads before the response; a single -1 where it has no context
    onpolicy_spans           [T] integers, bit k: inside the k-th span
    onpolicy_routes          [terms] the row's weight in each term
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onpolicy.data.rendering import Renderer
from onpolicy.data.rows import to_prompt
from onpolicy.integrations.verl.conversation_rows import by_rollout, segment_of, whole_rollout
from onpolicy.integrations.verl.problems import PROBLEM, problem_from_json
from onpolicy.types import Example, Prompt, Rollout, RolloutGroup, TrainBatch

if TYPE_CHECKING:
    from tensordict import TensorDict

NOTHING = -1
"""Stands for the prompt ids of a row without this context."""
MOST_SPANS = 63
"""Bits of a column's integers, without the sign."""
FIELDS = (
    "prompts",
    "responses",
    "response_mask",
    "rollout_log_probs",
    "rm_scores",
    "raw_prompt",
    "uid",
    "extra_fields",
)
"""Fields of a row that are read, apart from the dataset's columns."""
FEEDBACK = "feedback"
"""The key of a reward's text among the numbers of ``reward_extra_info``."""
ROUTES, SPANS = "onpolicy_routes", "onpolicy_spans"


def prompt_column(context: str) -> str:
    return f"onpolicy_prompt_{context}"


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Row numbers by group: the trajectories of one prompt."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(str(row["uid"]), []).append(number)
    return list(groups.values())


def rollout_group(
    rows: Sequence[Mapping[str, Any]],
    renderer: Renderer,
    *,
    max_tokens: int,
    texts: Sequence[str | None] | None = None,
) -> RolloutGroup:
    """The trajectories of one prompt, with the segments of each conversation put together.

    Args:
        rows: of the prompt
        renderer: the student's
        max_tokens: of a response; one that has as many was cut, unless it ends by itself
        texts: of each response, where it is known, which saves decoding it

    Raises:
        ValueError: the row is none that ``onpolicy.data`` reads, or its prompt holds the answer.
    """
    known = texts or [None] * len(rows)
    segments = [_rollout(row, renderer, max_tokens, text) for row, text in zip(rows, known, strict=True)]
    rollouts = (whole_rollout([segments[i] for i in numbers]) for numbers in by_rollout(rows))
    return RolloutGroup(prompt=prompt_of(rows[0]), rollouts=tuple(rollouts))


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """The problem: as a data source of ours has written it, or as ``onpolicy.data`` reads the columns.

    Raises:
        ValueError: it cannot be read, or the prompt holds the answer.
    """
    if row.get(PROBLEM):
        return problem_from_json(row[PROBLEM])
    asked, identity = as_lists(row["raw_prompt"]), str(row["uid"])
    given = {name: value for name, value in row.items() if name not in FIELDS}
    prompt = to_prompt({**given, "prompt": asked}, default_id=identity, columns={"prompt": "prompt"})
    if len(prompt.messages) < len(asked):
        raise ValueError(
            f"row {prompt.id!r}: the prompt ends with the assistant's turn, which verl shows to the student; take it out of the column "
            "'prompt', or mark it as one to continue with prefix: true"
        )
    return prompt


def _rollout(row: Mapping[str, Any], renderer: Renderer, max_tokens: int, text: str | None) -> Rollout:
    packed = segment_of(row)
    if packed is not None and packed.segment.failed:
        return packed.segment
    ids = tuple(row["responses"].tolist())
    logprobs = row.get("rollout_log_probs")
    sampled = _sampled(row) if packed is None else packed.sampled
    if text is None:
        text = renderer.completion_text(tuple(compress(ids, sampled)) if sampled else ids)
    made = Rollout(
        prompt_ids=tuple(row["prompts"].tolist()),
        completion_ids=ids,
        rollout_logprobs=(0.0,) * len(ids) if logprobs is None else tuple(logprobs.tolist()),
        text=text,
        finish_reason="stop" if len(ids) < max_tokens or ids[-1] in renderer.eos_ids else "length",
        policy_version=0,
        sampled_mask=sampled,
    )
    if packed is None:
        return made
    own = packed.segment
    return replace(made, finish_reason=own.finish_reason, history=own.history, outcome=own.outcome, final=own.final)


def _sampled(row: Mapping[str, Any]) -> tuple[bool, ...]:
    mask = row.get("response_mask")
    return () if mask is None or bool(mask.all()) else tuple(mask.bool().tolist())


def as_lists(value: Any) -> Any:
    """NumPy arrays and other iterables as lists."""
    if isinstance(value, Mapping):
        return {key: as_lists(inner) for key, inner in value.items()}
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return value
    return [as_lists(inner) for inner in value]


def parts_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that verl's reward function returned with its score; NaN stands for none."""
    given = (row.get("extra_fields") or {}).get("reward_extra_info") or {}
    return {n: float(value) for n, value in given.items() if isinstance(value, int | float) and not math.isnan(value)}


def feedback_of(row: Mapping[str, Any]) -> str | None:
    """The text that verl's reward function returned with its score."""
    given = (row.get("extra_fields") or {}).get("reward_extra_info") or {}
    text = given.get(FEEDBACK)
    return text if isinstance(text, str) and text else None


def score_of(row: Mapping[str, Any]) -> float:
    return float(row["rm_scores"].sum())


def columns(
    examples: Sequence[Example | None],
    lengths: Sequence[int],
    *,
    contexts: Sequence[str],
    terms: Sequence[str],
    spans: Sequence[str],
) -> dict[str, list[Tensor]]:
    """The columns for the workers; None stands for one of verl's padding rows.

    Args:
        examples: one per row
        lengths: of the rows' responses
    """
    found: dict[str, list[Tensor]] = {name: [] for name in (*map(prompt_column, contexts), ROUTES, SPANS)}
    as_tensor = _Tensors()
    for example, length in zip(examples, lengths, strict=True):
        for context in contexts:
            ids = example.teacher_prompt_ids.get(context) if example else None
            found[prompt_column(context)].append(as_tensor(ids or (NOTHING,)))
        shares = example.routes if example else dict.fromkeys(terms, 0.0)
        found[ROUTES].append(torch.tensor([shares.get(term, 1.0) for term in terms], dtype=torch.float32))
        marks = torch.zeros(length, dtype=torch.int64)
        for bit, name in enumerate(spans if example else ()):
            assert example is not None
            marks |= _bits(example.spans[name]) << bit
        found[SPANS].append(marks)
    return found


class _Tensors:
    """Siblings share the tuple of a prompt that they share, and then its tensor, too."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    def __call__(self, ids: tuple[int, ...]) -> Tensor:
        """[P] of the ids, which are held: another tuple cannot get their address."""
        if id(ids) not in self._held:
            self._held[id(ids)] = ids, torch.tensor(ids)
        return self._held[id(ids)][1]


def _bits(inside: Sequence[bool]) -> Tensor:
    """[T] 0 or 1; by way of bytes, which is several times as fast as ``torch.tensor`` of booleans."""
    return torch.from_numpy(np.frombuffer(bytes(inside), dtype=np.uint8).astype(np.int64))


def sampled(data: TensorDict) -> Tensor:
    """[all T] bool: which response tokens were sampled, row after row."""
    mask: Tensor = data["response_mask"].values().bool()
    return mask


def packed_places(data: TensorDict) -> Tensor:
    """[all T] where the states that predict response tokens stand if rows lie one after the other: one before each token, as the alignment
    rule has it."""
    prompts, responses = data["prompts"].offsets().diff(), data["responses"].offsets().diff()
    rows = prompts + responses
    within = torch.arange(int(responses.sum()), device=rows.device)
    within -= (responses.cumsum(0) - responses).repeat_interleave(responses)
    places: Tensor = (rows.cumsum(0) - rows + prompts - 1).repeat_interleave(responses) + within
    return places


def train_batch(data: TensorDict, *, contexts: Sequence[str], terms: Sequence[str], spans: Sequence[str]) -> TrainBatch:
    """verl's micro-batch as a ``TrainBatch``; ``advantages`` may be missing where only tokens are counted."""
    responses = data["responses"]
    mask = padded(data["response_mask"]).bool()
    have = {
        context: data[prompt_column(context)].values()[data[prompt_column(context)].offsets()[:-1]] != NOTHING
        for context in contexts
    }
    marks, routes = padded(data[SPANS]), padded(data[ROUTES])
    zeros = torch.zeros(mask.shape, device=mask.device)
    return TrainBatch(
        examples=(),
        completion_ids=padded(responses),
        sampled_mask=mask,
        rollout_logprobs=_floats(data, "rollout_log_probs", zeros),
        advantages=_floats(data, "advantages", zeros),
        context_masks={context: mask & rows[:, None] for context, rows in have.items()},
        routes={term: routes[:, i] for i, term in enumerate(terms)},
        spans={name: (marks >> bit & 1).bool() for bit, name in enumerate(spans)},
    )


def _floats(data: TensorDict, name: str, otherwise: Tensor) -> Tensor:
    return floats(data[name]) if name in data.keys() else otherwise  # noqa: SIM118 a TensorDict iterates over rows


def floats(nested: Tensor) -> Tensor:
    """[B, T], 0 where a row has ended; in float32, or as it is if that is more."""
    found = padded(nested)
    return found.to(torch.promote_types(found.dtype, torch.float32))


def padded(nested: Tensor) -> Tensor:
    """[B, T], 0 where a row has ended."""
    return torch.nested.to_padded_tensor(nested, padding=0)
