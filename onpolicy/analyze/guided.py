"""Answers that the model writes with a context in view."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onpolicy.inquiry import Inquiry
from onpolicy.protocols import Generator
from onpolicy.routing import RIGHT
from onpolicy.scoring import Judge, JudgedGroup
from onpolicy.types import Message, Prompt


@dataclass(frozen=True)
class Guided:
    """The answers under one context, and what was shown."""

    shown: Mapping[str, tuple[Message, ...]]
    """Problem -> what the model read."""
    judged: Sequence[JudgedGroup] = field(default_factory=list)


def guide(
    unguided: Sequence[JudgedGroup],
    contexts: Mapping[str, Callable[..., Any]],
    *,
    generator: Generator,
    judge: Judge,
    inquiry: Inquiry,
    seed: int,
) -> dict[str, Guided]:
    """Context -> answers, ``group_size`` to each problem for which it has something to show.

    Args:
        unguided: each problem with its unguided answers, which contexts see as siblings, as in training
        contexts: by name; each is asked for what a wrong answer's teacher would read, so that a sibling is the first right one
        generator: answers
        judge: says what is right
        inquiry: answers what contexts ask
        seed: of all samples
    """
    found = {}
    for number, (name, context) in enumerate(contexts.items(), start=1):
        places = {(i, j): g for i, g in enumerate(unguided) for j in _wrong_first(g)}
        started: dict[Hashable, tuple[Prompt, Any]] = {
            (i, j): (judged.group.prompt, context(judged.group, j, judged.scores)) for (i, j), judged in places.items()
        }
        built = inquiry.settle(started, version=0)
        shown: dict[str, tuple[Message, ...]] = {}
        for (i, j), judged in places.items():
            if built[i, j] is not None:
                shown.setdefault(judged.group.prompt.id, tuple(built[i, j]))
        prompts = [g.group.prompt for g in unguided if g.group.prompt.id in shown]
        asked = [replace(p, id=f"{p.id}@{name}", messages=shown[p.id]) for p in prompts]
        judged_groups = judge(generator.generate(asked, seed=seed + number)) if asked else []
        found[name] = Guided(
            shown,
            # as it was read: what an answer repeats of it is a quotation, no doubt of its own
            [
                replace(g, group=replace(g.group, prompt=replace(p, messages=shown[p.id])))
                for g, p in zip(judged_groups, prompts, strict=True)
            ],
        )
    return found


def _wrong_first(judged: JudgedGroup) -> list[int]:
    return sorted(range(len(judged.scores)), key=lambda j: judged.scores[j] >= RIGHT)
