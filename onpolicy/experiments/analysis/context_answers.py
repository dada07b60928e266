"""Answers that the model writes with a context in its prompt."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.sampled import reads_sampled
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
            for problem, (messages, drop) in _prompts(without_context, context, queries).items()
            if queries.fits(messages, f"prompt {problem!r} with the context {name!r}", drop)
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
) -> dict[str, tuple[tuple[Message, ...], Callable[[], bool]]]:
    """Problem -> the prompt with the context, built for the first of its answers for which the context has something, wrong ones first;
    and what tells whether that prompt holds something sampled.

    One answer of each problem at a time, so that a context that asks the model is never asked for what is not used.
    """
    shown: dict[str, tuple[tuple[Message, ...], Callable[[], bool]]] = {}
    for turn in range(max((len(g.scores) for g in without_context), default=0)):
        left = {
            g.group.prompt.id: g for g in without_context if g.group.prompt.id not in shown and turn < len(g.scores)
        }
        reads = {
            problem: partial(reads_sampled, context, scored, _wrong_first(scored)[turn])
            for problem, scored in left.items()
        }
        started: dict[Hashable, tuple[Prompt, Any]] = {
            problem: (scored.group.prompt, context(scored.group, _wrong_first(scored)[turn], scored.scores))
            for problem, scored in left.items()
        }
        built = queries.run(started, version=0, is_sampled=partial(_is_sampled, reads))
        shown |= {problem: (tuple(built[problem]), reads[problem]) for problem in left if built[problem] is not None}
    return shown


def _is_sampled(reads: Mapping[str, Callable[..., bool]], problem: str) -> bool:
    """Whether what a problem's context asks first holds something sampled."""
    return reads[problem](replies=False)


def _wrong_first(scored: ScoredGroup) -> list[int]:
    return sorted(range(len(scored.scores)), key=lambda j: scored.scores[j] >= CORRECT_THRESHOLD)
