"""Answers that the model writes with a context in its prompt."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.scoring import Scorer
from onpolicy.protocols import Generator
from onpolicy.types import CORRECT_THRESHOLD, Message, Prompt, ScoredGroup


@dataclass(frozen=True)
class ContextAnswers:
    """The answers under one context, and the prompts they answer."""

    messages: Mapping[str, tuple[Message, ...]]
    """Problem -> what the model read."""
    scored: Sequence[ScoredGroup] = field(default_factory=list)


def answer_with_contexts(
    without_context: Sequence[ScoredGroup],
    contexts: Mapping[str, Callable[..., Any]],
    *,
    generator: Generator,
    scorer: Scorer,
    queries: ContextQueries,
    seed: int,
) -> dict[str, ContextAnswers]:
    """Context -> answers, ``group_size`` to each problem for which the context has something to show.

    Args:
        without_context: each problem with its answers without a context, which contexts see as siblings, as in training
        contexts: by name; each is asked for what the teacher of a wrong answer would read, so that a sibling is the first correct one
        generator: answers
        scorer: says which answers are correct
        queries: answers what contexts ask
        seed: of all samples
    """
    found = {}
    for number, (name, context) in enumerate(contexts.items(), start=1):
        shown = {
            problem: messages
            for problem, messages in _prompts(without_context, context, queries).items()
            if queries.fits(messages, f"prompt {problem!r} with the context {name!r}")
        }
        prompts = [g.group.prompt for g in without_context if g.group.prompt.id in shown]
        asked = [replace(p, id=f"{p.id}@{name}", messages=shown[p.id]) for p in prompts]
        scored = scorer.score(generator.generate(asked, seed=seed + number)) if asked else []
        found[name] = ContextAnswers(
            shown,
            # with the prompt that was read: words that an answer repeats from it are quotations, not the model's own doubt
            [
                replace(g, group=replace(g.group, prompt=replace(p, messages=shown[p.id])))
                for g, p in zip(scored, prompts, strict=True)
            ],
        )
    return found


def _prompts(
    without_context: Sequence[ScoredGroup], context: Callable[..., Any], queries: ContextQueries
) -> dict[str, tuple[Message, ...]]:
    """Problem -> the prompt with the context, built for the first of its answers for which the context has something, wrong ones first.

    One answer of each problem at a time, so that a context that asks the model is never asked for what is not used.
    """
    shown: dict[str, tuple[Message, ...]] = {}
    for turn in range(max((len(g.scores) for g in without_context), default=0)):
        left = [g for g in without_context if g.group.prompt.id not in shown and turn < len(g.scores)]
        started: dict[Hashable, tuple[Prompt, Any]] = {
            g.group.prompt.id: (g.group.prompt, context(g.group, _wrong_first(g)[turn], g.scores)) for g in left
        }
        shown |= {str(k): tuple(built) for k, built in queries.run(started, version=0).items() if built is not None}
    return shown


def _wrong_first(scored: ScoredGroup) -> list[int]:
    return sorted(range(len(scored.scores)), key=lambda j: scored.scores[j] >= CORRECT_THRESHOLD)
