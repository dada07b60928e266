"""Answers that the model writes with a context in view."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.scoring import Scorer
from onpolicy.protocols import Generator
from onpolicy.types import CORRECT_THRESHOLD, Message, Prompt, ScoredGroup


@dataclass(frozen=True)
class Guided:
    """The answers under one context, and what was shown."""

    shown: Mapping[str, tuple[Message, ...]]
    """Problem -> what the model read."""
    judged: Sequence[ScoredGroup] = field(default_factory=list)


def guide(
    unguided: Sequence[ScoredGroup],
    contexts: Mapping[str, Callable[..., Any]],
    *,
    generator: Generator,
    scorer: Scorer,
    queries: ContextQueries,
    seed: int,
) -> dict[str, Guided]:
    """Context -> answers, ``group_size`` to each problem for which it has something to show.

    Args:
        unguided: each problem with its unguided answers, which contexts see as siblings, as in training
        contexts: by name; each is asked for what a wrong answer's teacher would read, so that a sibling is the first right one
        generator: answers
        scorer: says which answers are correct
        inquiry: answers what contexts ask
        seed: of all samples
    """
    found = {}
    for number, (name, context) in enumerate(contexts.items(), start=1):
        shown = {
            problem: messages
            for problem, messages in _shown(unguided, context, queries).items()
            if queries.fits(messages, f"prompt {problem!r} with the context {name!r}")
        }
        prompts = [g.group.prompt for g in unguided if g.group.prompt.id in shown]
        asked = [replace(p, id=f"{p.id}@{name}", messages=shown[p.id]) for p in prompts]
        judged_groups = scorer.score(generator.generate(asked, seed=seed + number)) if asked else []
        found[name] = Guided(
            shown,
            # as it was read: what an answer repeats of it is a quotation, no doubt of its own
            [
                replace(g, group=replace(g.group, prompt=replace(p, messages=shown[p.id])))
                for g, p in zip(judged_groups, prompts, strict=True)
            ],
        )
    return found


def _shown(
    unguided: Sequence[ScoredGroup], context: Callable[..., Any], queries: ContextQueries
) -> dict[str, tuple[Message, ...]]:
    """Problem -> what the context shows beside the first of its answers for which it has something, wrong ones first.

    One answer of each problem at a time: a context that asks the model is not asked for what is not used.
    """
    shown: dict[str, tuple[Message, ...]] = {}
    for turn in range(max((len(g.scores) for g in unguided), default=0)):
        left = [g for g in unguided if g.group.prompt.id not in shown and turn < len(g.scores)]
        started: dict[Hashable, tuple[Prompt, Any]] = {
            g.group.prompt.id: (g.group.prompt, context(g.group, _wrong_first(g)[turn], g.scores)) for g in left
        }
        shown |= {str(k): tuple(built) for k, built in queries.run(started, version=0).items() if built is not None}
    return shown


def _wrong_first(judged: ScoredGroup) -> list[int]:
    return sorted(range(len(judged.scores)), key=lambda j: judged.scores[j] >= CORRECT_THRESHOLD)
