"""What seeing more does to the model's own answers: it *generates* under each context, nothing is trained.

Section 3 of arXiv 2603.24472 (its table 1) for any model, dataset and contexts: score, length and markers of doubt, counted as the
paper does and per 1,000 tokens, with intervals over problems.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from onpolicy.epistemic.marked import Split, mark
from onpolicy.epistemic.text import pooled_rate
from onpolicy.inquiry import Inquiry
from onpolicy.intervals import Measured, measured
from onpolicy.protocols import Generator
from onpolicy.scoring import Judge, JudgedGroup
from onpolicy.types import Prompt
from rewards.lexicon import count

UNGUIDED = "unguided"


@dataclass(frozen=True)
class Row:
    """What the model did under one context."""

    context: str
    problems: int
    samples: int
    score: Measured
    tokens: Measured
    paper_count: Measured
    """The ten words of the paper as substrings, a response."""
    rates: Mapping[str, Measured]
    """Lexicon -> markers per 1,000 tokens."""
    truncated: float


def compare_contexts(
    prompts: Sequence[Prompt],
    contexts: Mapping[str, Callable[..., Any]],
    *,
    generator: Generator,
    judge: Judge,
    inquiry: Inquiry,
    lexicons: Sequence[str],
    seed: int,
    band: tuple[float, float] = (0.0, 1.0),
) -> list[Row]:
    """A row without context, then one for each context, all on the same problems.

    Args:
        prompts: the problems
        contexts: by name; they see the unguided answers as siblings, as in training
        generator: samples ``group_size`` answers of each problem under each context
        judge: says what is right
        inquiry: answers what contexts ask
        lexicons: whose markers are counted
        seed: of all samples
        band: only problems whose unguided share of right answers lies within
    """
    unguided = [g for g in judge(generator.generate(prompts, seed=seed)) if band[0] <= _solved(g) <= band[1]]
    split = inquiry.renderer.split_thinking
    rows = [_row(UNGUIDED, unguided, lexicons, split)] if unguided else []
    for number, (name, context) in enumerate(contexts.items(), start=1):
        started: dict[Hashable, tuple[Prompt, Any]] = {
            (i, j): (judged.group.prompt, context(judged.group, j, judged.scores))
            for i, judged in enumerate(unguided)
            for j in range(len(judged.scores))
        }
        built = inquiry.settle(started, version=0)
        guided = []
        for i, judged in enumerate(unguided):
            messages = next((built[i, j] for j in range(len(judged.scores)) if built[i, j] is not None), None)
            if messages is not None:
                prompt = judged.group.prompt
                guided.append(replace(prompt, id=f"{prompt.id}@{name}", messages=tuple(messages)))
        if guided:
            rows.append(_row(name, judge(generator.generate(guided, seed=seed + number)), lexicons, split))
    return rows


def _solved(judged: JudgedGroup) -> float:
    return fmean(score >= 0.5 for score in judged.scores)


def _row(name: str, groups: Sequence[JudgedGroup], lexicons: Sequence[str], split: Split) -> Row:
    rollouts = [g.group.rollouts for g in groups]
    problems = [mark([g], lexicons, split) for g in groups]
    return Row(
        context=name,
        problems=len(groups),
        samples=len(rollouts[0]),
        score=measured([_solved(g) for g in groups]),
        tokens=measured([fmean(m.tokens for m in group) for group in problems]),
        paper_count=measured(
            [fmean(sum(count(m.text, "seed10", "paper").values()) for m in group) for group in problems]
        ),
        rates={lexicon: measured([pooled_rate(group, lexicon) or 0.0 for group in problems]) for lexicon in lexicons},
        truncated=fmean(r.finish_reason == "length" for group in rollouts for r in group),
    )
