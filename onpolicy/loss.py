"""The loss: a sum of weighted terms, each over its own tokens and its own denominator. The only place that divides.

    L = sum_i weight_i * (sum of term_i over its tokens) / (number of its tokens in the whole optimizer update)

or, with ``normalize: sequences``, the mean over each completion's tokens, then over the update's completions (GRPO as
published, arXiv 2402.03300, equation 3).
The denominators are counted over all micro-batches before the first of them runs, so how an update is cut into
micro-batches never changes its gradient.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onpolicy.distill.compare import Comparison
from onpolicy.objectives.term import TermFacts, TermFunction
from onpolicy.types import LossInputs, Metrics, TrainBatch


@dataclass(frozen=True)
class Term:
    """One summand."""

    name: str
    """Names its metrics; unique within the objective."""
    weight: float
    function: TermFunction
    """``LossInputs -> TermOutput``, options bound."""
    facts: TermFacts
    view: str | None
    """The view it reads, where it reads one."""
    normalize: str = "tokens"
    """``tokens`` or ``sequences``."""
    comparison: Comparison | None = None
    """What has to be compared over the vocabulary for it."""

    def tokens(self, batch: TrainBatch | LossInputs) -> Tensor:
        """[B, T] bool: the tokens this term trains."""
        if self.facts.tokens == "response_mask":
            return batch.response_mask
        assert self.view is not None
        return (batch.views if isinstance(batch, TrainBatch) else batch.teacher)[self.view].mask

    def shares(self, mask: Tensor) -> Tensor:
        """[B, T] what each token counts before the division: 1, or 1 / tokens of its row."""
        if self.normalize == "tokens":
            return mask.float()
        return mask / mask.sum(-1, keepdim=True).clamp(min=1)

    def units(self, mask: Tensor) -> int:
        """How many tokens, or completions, the term is a mean over."""
        return int(mask.sum() if self.normalize == "tokens" else mask.any(-1).sum())


class Tally:
    """Sums and counts of per-token quantities, over micro-batches; gives means at the end."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        self.sums[name] += float(values[mask].sum())
        self.counts[name] += int(mask.sum())

    def means(self) -> Metrics:
        """A quantity without a single token is absent rather than 0."""
        return {name: self.sums[name] / count for name, count in self.counts.items() if count}


@dataclass(frozen=True)
class Objective:
    terms: tuple[Term, ...]

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        return tuple(dict.fromkeys(t.comparison for t in self.terms if t.comparison is not None))

    @property
    def needs_ref(self) -> bool:
        return any(t.facts.needs_ref for t in self.terms)

    def denominators(self, batches: Iterable[TrainBatch]) -> Mapping[str, int]:
        """Tokens, or completions, of each term over all micro-batches of one optimizer update."""
        counts: Counter[str] = Counter({t.name: 0 for t in self.terms})
        for batch in batches:
            for term in self.terms:
                counts[term.name] += term.units(term.tokens(batch))
        return counts

    def __call__(self, inputs: LossInputs, denominators: Mapping[str, int], tally: Tally | None = None) -> Tensor:
        """This micro-batch's share of the loss; the shares of all micro-batches add up to the loss of the update."""
        total = inputs.logprobs.sum() * 0.0  # keeps the graph where no term has a token in this micro-batch
        for term in self.terms:
            output, mask = term.function(inputs), term.tokens(inputs)
            if output.per_token.shape != mask.shape:
                raise ValueError(
                    f"objective term {term.name!r} returned a loss of shape {tuple(output.per_token.shape)}, "
                    f"wanted one number per token {tuple(mask.shape)}"
                )
            # where, not multiplication: 0 * nan from a padded position would poison the sum
            per_token = torch.where(mask, output.per_token, 0.0)
            total = total + term.weight * (per_token * term.shares(mask)).sum() / max(denominators[term.name], 1)
            if tally is not None:
                tally.add(f"{term.name}/loss", per_token.detach(), mask)
                for name, values in output.metrics.items():
                    tally.add(f"{term.name}/{name}", values.detach(), mask)
        return total


def unique_names(names: Sequence[str]) -> list[str]:
    """``distill, distill`` -> ``distill, distill_2``."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result
