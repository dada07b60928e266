"""Conversations with an environment as verl's rows: one for each segment, with what the tokens do not say among its ``extra_fields``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onpolicy.types import EnvironmentOutcome, Rollout

CONVERSATION = "onpolicy_conversation"
"""Key of a row's ``extra_fields``."""


@dataclass(frozen=True)
class PackedSegment:
    """One segment of a rollout, without what its row has."""

    session: str
    """Of the rollout; no other has it."""
    place: int
    """Among the rollout's segments."""
    segment: Rollout
    """Without tokens and text; whole where the environment failed, as the row then stands for nothing."""
    sampled: tuple[bool, ...]
    """Which completion tokens the policy sampled; empty: all."""


def packed_segments(rollout: Rollout, session: str) -> list[tuple[Rollout, str]]:
    """What becomes of each row of a rollout, in order: its segment, and the JSON that goes with it. A failed one has a single row."""
    if rollout.failed:
        return [(rollout, _pack(PackedSegment(session, 0, rollout, ())))]
    found = []
    for place, segment in enumerate(rollout.segments):
        bare = replace(
            segment, prompt_ids=(), completion_ids=(), rollout_logprobs=(), sampled_mask=(), text="", earlier=()
        )
        found.append((segment, _pack(PackedSegment(session, place, bare, segment.sampled_mask))))
    return found


def segment_of(row: Mapping[str, Any]) -> PackedSegment | None:
    """None where the row is a rollout of its own."""
    packed = (row.get("extra_fields") or {}).get(CONVERSATION)
    if not isinstance(packed, str):
        return None
    told = json.loads(packed)  # no pickle: a dataset may have a column of this name
    return PackedSegment(told["session"], told["place"], _rollout_from(told["segment"]), tuple(told["sampled"]))


def _pack(segment: PackedSegment) -> str:
    return json.dumps(asdict(segment), default=float)  # environments may give NumPy's numbers


def _rollout_from(told: Mapping[str, Any]) -> Rollout:
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in told.items()}
    outcome = told["outcome"] and EnvironmentOutcome(**told["outcome"])
    return Rollout(**values | {"outcome": outcome, "earlier": tuple(map(_rollout_from, told["earlier"]))})


def has_failed(row: Mapping[str, Any]) -> bool:
    """Whether the row stands for a rollout whose environment failed."""
    found = segment_of(row)
    return found is not None and found.segment.failed


def by_rollout(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Row numbers by rollout: those of a conversation in the order of its segments, every other row alone."""
    places: dict[object, dict[int, int]] = defaultdict(dict)
    for number, row in enumerate(rows):
        own = segment_of(row)
        if own is None:
            places[number][0] = number
        else:
            places[own.session][own.place] = number
    return [[found[place] for place in sorted(found)] for found in places.values()]


def whole_rollout(segments: Sequence[Rollout]) -> Rollout:
    """The rollout with these segments."""
    *earlier, last = segments
    return replace(last, earlier=tuple(earlier)) if earlier else last
