"""The loss: a sum of weighted terms, each over its own tokens and its own denominator. The only place that divides.

    L = sum_i weight_i * sum over the tokens of term_i of (route of its rollout x loss of the token) / denominator_i

The denominator says what a term is a mean over (`normalize`):

    tokens          its tokens in the whole optimizer update
    sequences       each completion's tokens, then the completions that have any (GRPO as published, arXiv 2402.03300)
    all_sequences   the same, but completions without a token of the term count too, so the step shrinks with the fraction of
                    rollouts that have no teacher. SDPO's code takes the mean over the tokens of each micro-batch, then over
                    micro-batches; this is that loss if, and only if, a micro-batch is one completion, as in arXiv 2603.24472's
                    runs (ppo_micro_batch_size_per_gpu 1, no dynamic batches)
    max_tokens      completions x `generator.max_tokens`, a constant: no bias from length (Dr. GRPO, arXiv 2503.20783)

The denominators are counted over all micro-batches before the first of them runs, so how an update is cut into
micro-batches never changes its gradient.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onpolicy.config.schedules import Coefficient
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.terms.base import TermFunction, TermSpec
from onpolicy.types import LossInputs, Metrics, TrainBatch


@dataclass(frozen=True)
class Term:
    """One term of the sum."""

    name: str
    """Names its metrics; unique within the objective."""
    weight: float | Coefficient
    function: TermFunction
    """``LossInputs -> TermOutput``, options bound."""
    spec: TermSpec
    contexts: tuple[str, ...] = ()
    """The contexts that it reads, itself or through its options."""
    normalize: str = "tokens"
    """``tokens``, ``sequences``, ``all_sequences`` or ``max_tokens``."""
    max_tokens: int = 1
    """``generator.max_tokens``."""
    comparison: Comparison | None = None
    """The comparison over the vocabulary that it reads, if any."""

    def tokens(self, batch: TrainBatch | LossInputs) -> Tensor:
        """[B, T] bool: the tokens this term trains."""
        mask = batch.sampled_mask
        if self.spec.tokens == "teacher_mask":
            for context in self.contexts:
                mask = mask & (
                    batch.context_masks[context] if isinstance(batch, TrainBatch) else batch.teacher[context].mask
                )
        return mask if self.name not in batch.routes else mask & (batch.routes[self.name] > 0)[:, None]

    def token_scale(self, mask: Tensor, inputs: LossInputs) -> Tensor:
        """[B, T] the factor of each token's loss before the division: its rollout's route, divided by the row's tokens if the
        term is a mean over sequences."""
        scale = mask.float() if self.name not in inputs.routes else mask * inputs.routes[self.name][:, None]
        return scale / mask.sum(-1, keepdim=True).clamp(min=1) if self.normalize.endswith("sequences") else scale

    def denominator(self, mask: Tensor) -> int:
        """How many tokens or sequences the term is a mean over, in rows with this mask ``[B, T]``."""
        return {
            "tokens": int(mask.sum()),
            "sequences": int(mask.any(-1).sum()),
            "all_sequences": len(mask),
            "max_tokens": len(mask) * self.max_tokens,
        }[self.normalize]


class MetricAccumulator:
    """Sums and counts over micro-batches: means of per-token quantities, and totals."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        self.sums[name] += float(values[mask].sum())
        self.counts[name] += int(mask.sum())

    def count(self, name: str, number: int) -> None:
        """Adds to a total, which is logged as a sum."""
        self.totals[name] += number

    def absorb(self, other: MetricAccumulator) -> None:
        """Adds the sums and counts of another accumulator."""
        for name, value in other.sums.items():
            self.sums[name] += value
        self.counts.update(other.counts)
        self.totals.update(other.totals)

    def means(self) -> Metrics:
        """Means and totals by name; a quantity without a single token is absent rather than 0."""
        means = {name: self.sums[name] / count for name, count in self.counts.items() if count}
        return means | {name: float(total) for name, total in self.totals.items()}


@dataclass(frozen=True)
class Objective:
    """The loss of one optimizer update: a weighted sum of terms."""

    terms: tuple[Term, ...]

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        return tuple(dict.fromkeys(t.comparison for t in self.terms if t.comparison is not None))

    @property
    def needs_ref(self) -> bool:
        """Whether a term, or a plug-in among its options, reads the reference model."""
        return any(t.spec.needs_ref for t in self.terms)

    @property
    def routes(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.terms)

    def denominators(self, batches: Iterable[TrainBatch]) -> Mapping[str, int]:
        """Each term's denominator, counted over all micro-batches of one optimizer update."""
        counts: Counter[str] = Counter({t.name: 0 for t in self.terms})
        for batch in batches:
            for term in self.terms:
                counts[term.name] += term.denominator(term.tokens(batch))
        return counts

    def loss(
        self, inputs: LossInputs, denominators: Mapping[str, int], metrics: MetricAccumulator | None = None
    ) -> Tensor:
        """This micro-batch's part of the loss; the parts of all micro-batches add up to the loss of the update.

        Args:
            inputs: of one micro-batch
            denominators: by term, counted over the whole update
            metrics: gets the terms' losses and metrics

        Raises:
            ValueError: a term's loss is not ``[B, T]``.
        """
        total = inputs.logprobs.sum() * 0.0  # keeps the graph where no term has a token in this micro-batch
        for term in self.terms:
            output, mask = term.function(inputs), term.tokens(inputs)
            if output.per_token.shape != mask.shape:
                raise ValueError(
                    f"objective term {term.name!r} returned a loss of shape {tuple(output.per_token.shape)}, "
                    f"expected one number per token {tuple(mask.shape)}"
                )
            # where, not multiplication: 0 * nan from a padded position would poison the sum
            per_token = torch.where(mask, output.per_token, 0.0)
            part = (per_token * term.token_scale(mask, inputs)).sum() / max(denominators[term.name], 1)
            total = total + float(term.weight) * part
            if metrics is not None:
                metrics.add(f"{term.name}/loss", per_token.detach(), mask)
                for name, values in output.metrics.items():
                    metrics.add(f"{term.name}/{name}", values.detach(), mask)
        return total
