"""What seeing more does to the model's own answers: it *generates* under each context, nothing is trained.

Section 3 of arXiv 2603.24472 (its table 1) for any model, dataset and contexts: score, length and markers of doubt, counted as the
paper does and in our way, a response and per 1,000 tokens, with intervals over problems and differences from the unguided answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from onpolicy.annotation.scoring import ScoredGroup
from onpolicy.epistemic.marked import Split, locate_markers
from onpolicy.epistemic.text import pooled_rate
from onpolicy.experiments.analysis.collect import solved
from onpolicy.experiments.analysis.guided import Guided
from onpolicy.experiments.analysis.richness import Gain
from onpolicy.rewards.lexicon import count
from onpolicy.utils.stats import Estimate, estimate_mean

UNGUIDED = "unguided"

Numbers = Mapping[str, float]
"""Measure -> value, of one problem: ``score``, ``tokens``, ``paper_count``, ``paper_per_1k``, ``rate/<lexicon>``, ``truncated``."""


@dataclass(frozen=True)
class Row:
    """What the model did under one context."""

    context: str
    samples: int
    """Answers to each problem."""
    by_problem: Mapping[str, Numbers]
    against: Mapping[str, Numbers]
    """The same problems unguided."""
    gain: Gain | None = None
    """What the context tells; None of the unguided answers."""

    @property
    def problems(self) -> int:
        return len(self.by_problem)

    @property
    def measures(self) -> list[str]:
        return list(next(iter(self.by_problem.values())))

    def mean(self, measure: str) -> Estimate:
        """Over problems."""
        return estimate_mean([numbers[measure] for numbers in self.by_problem.values()])

    def difference(self, measure: str) -> Estimate:
        """Less the unguided answers, problem by problem."""
        return estimate_mean([numbers[measure] - self.against[p][measure] for p, numbers in self.by_problem.items()])


def rows(
    unguided: Sequence[ScoredGroup],
    guided: Mapping[str, Guided],
    gains: Mapping[str, Gain],
    lexicons: Sequence[str],
    split: Split,
) -> list[Row]:
    """The unguided answers, then each context that had something to show."""
    plain = numbers(unguided, lexicons, split)
    samples = len(unguided[0].scores)
    return [Row(UNGUIDED, samples, plain, plain)] + [
        Row(name, samples, numbers(g.judged, lexicons, split), plain, gains.get(name))
        for name, g in guided.items()
        if g.judged
    ]


def numbers(judged: Sequence[ScoredGroup], lexicons: Sequence[str], split: Split) -> dict[str, Numbers]:
    """Of each problem, over its answers."""
    found: dict[str, Numbers] = {}
    for g in judged:
        marked = locate_markers([g], lexicons, split)
        tokens = sum(m.tokens for m in marked)
        paper = sum(sum(count(m.text, "seed10", "paper").values()) for m in marked)
        found[g.group.prompt.id] = {
            "score": solved(g),
            "tokens": tokens / len(marked),
            "paper_count": paper / len(marked),
            "paper_per_1k": 1000.0 * paper / max(tokens, 1),
            **{f"rate/{lexicon}": pooled_rate(marked, lexicon) or 0.0 for lexicon in lexicons},
            "truncated": fmean(m.rollout.finish_reason == "length" for m in marked),
        }
    return found
