"""What a model's answers under a context are like: accuracy, length and epistemic markers, with bootstrap intervals over problems.

Markers are counted as arXiv 2603.24472 counts them and as whole words, per response and per 1,000 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from onpolicy.epistemic.marked import locate_markers
from onpolicy.epistemic.text import pooled_rate
from onpolicy.epistemic.text_facts import Split
from onpolicy.experiments.analysis.context_answers import ContextAnswers
from onpolicy.experiments.analysis.richness import Gain
from onpolicy.types import ScoredGroup
from onpolicy.utils.stats import Estimate, estimate_mean

UNGUIDED = "unguided"
"""The paper's name for answers without a context."""

Measures = Mapping[str, float]
"""Measure -> value, of one problem: ``score``, ``tokens``, ``paper_count``, ``paper_per_1k``, ``rate/<lexicon>``, ``truncated``."""


@dataclass(frozen=True)
class ContextRow:
    """What the model did under one context."""

    context: str
    samples: int
    """Answers to each problem."""
    by_problem: Mapping[str, Measures]
    against: Mapping[str, Measures]
    """The same problems without a context."""
    gain: Gain | None = None
    """What the context tells; None for the answers without one."""

    @property
    def problems(self) -> int:
        return len(self.by_problem)

    @property
    def measures(self) -> list[str]:
        return list(next(iter(self.by_problem.values())))

    def mean(self, measure: str) -> Estimate:
        """Over problems."""
        return estimate_mean([measures[measure] for measures in self.by_problem.values()])

    def difference(self, measure: str) -> Estimate:
        """Minus the answers without a context, problem by problem."""
        return estimate_mean([measures[measure] - self.against[p][measure] for p, measures in self.by_problem.items()])


def context_rows(
    without_context: Sequence[ScoredGroup],
    with_contexts: Mapping[str, ContextAnswers],
    gains: Mapping[str, Gain],
    lexicons: Sequence[str],
    split: Split,
) -> list[ContextRow]:
    """The answers without a context, then each context that had something to show."""
    plain = measures_of(without_context, lexicons, split)
    samples = len(without_context[0].scores)
    return [ContextRow(UNGUIDED, samples, plain, plain)] + [
        ContextRow(name, samples, measures_of(g.scored, lexicons, split), plain, gains.get(name))
        for name, g in with_contexts.items()
        if g.scored
    ]


def measures_of(scored: Sequence[ScoredGroup], lexicons: Sequence[str], split: Split) -> dict[str, Measures]:
    """Problem -> its measures, over its answers; problems without a graded one are left out."""
    found: dict[str, Measures] = {}
    for g in (g for g in scored if any(g.graded)):
        marked = locate_markers([g], lexicons, split)
        tokens = sum(m.tokens for m in marked)
        paper = sum(m.paper_count for m in marked)
        found[g.group.prompt.id] = {
            "score": g.pass_rate,
            "tokens": tokens / len(marked),
            "paper_count": paper / len(marked),
            "paper_per_1k": 1000.0 * paper / max(tokens, 1),
            **{f"rate/{lexicon}": pooled_rate(marked, lexicon) or 0.0 for lexicon in lexicons},
            "truncated": fmean(m.rollout.finish_reason == "length" for m in marked),
        }
    return found
