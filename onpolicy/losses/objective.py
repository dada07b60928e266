"""The loss: a sum of weighted terms, each over its own tokens and its own denominator. The only place that divides.

    L = sum_i weight_i * sum over the tokens of term_i of (route of its rollout x loss of the token) / denominator_i

The denominator says what a term is a mean over (`normalize`):

    tokens          its tokens in the whole optimizer update
    all_tokens      all sampled tokens of the update, also those that the term does not train: one divisor for several terms
    sequences       each completion's tokens, then the completions that have any (GRPO as published, arXiv 2402.03300)
    all_sequences   the same, but completions without a token of the term count too, so the step shrinks with the fraction of
                    rollouts that have no teacher. SDPO's code takes the mean over the tokens of each micro-batch, then over
                    micro-batches; this is that loss if, and only if, a micro-batch is one completion, as in arXiv 2603.24472's
                    runs (ppo_micro_batch_size_per_gpu 1, no dynamic batches)
    max_tokens      completions that are not empty x `generator.max_tokens`: no bias from length (Dr. GRPO, arXiv 2503.20783)

The denominators are counted over all micro-batches before the first gradient, so how an update is cut into micro-batches
never changes its gradient. Where they depend on what the models say (`select`), or where a function compares a token with all
others of the update (`reads_update`), the student first reads the update once without gradient: ``Objective.survey``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from onpolicy.config.schedules import Coefficient
from onpolicy.losses.comparison import Comparison
from onpolicy.losses.terms.base import TermFunction, TermSpec
from onpolicy.losses.token_weights import TokenWeight, reads_masks_alone
from onpolicy.losses.update_values import Answers, asked_for, with_answers
from onpolicy.types import LossInputs, Metrics, TermOutput, TrainBatch
from onpolicy.utils.device_sums import DeviceSums, read_counts


@dataclass(frozen=True)
class Totals:
    """What a micro-batch has to know of the whole optimizer update."""

    denominators: Mapping[str, float]
    """By term."""
    answers: Mapping[str, Answers] = field(default_factory=dict)
    """By term, the update's values that its functions ask for; a term that asks for none is absent."""


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
    """``tokens``, ``all_tokens``, ``sequences``, ``all_sequences`` or ``max_tokens``."""
    select: TokenWeight | None = None
    """Token weights: where they are 0, the token is none of the term's. None: all are."""
    temperature: float = 1.0
    """What the logits of student and teacher are divided by in its inputs."""
    reads_update: bool = False
    """Whether one of its functions compares a token with all others of the update."""
    max_tokens: int = 1
    """``generator.max_tokens``."""
    comparison: Comparison | None = None
    """The comparison over the vocabulary that it reads, if any."""

    @property
    def needs_survey(self) -> bool:
        """Whether its tokens or its values are known only once the models have read the whole update."""
        selects = self.select is not None and not reads_masks_alone(self.select)
        return self.reads_update or (selects and self.normalize in ("tokens", "sequences"))

    def candidates(self, batch: TrainBatch | LossInputs) -> Tensor:
        """[B, T] bool: the tokens among which ``select`` chooses: those of the rollouts that the term gets."""
        mask = batch.sampled_mask
        if self.spec.tokens == "teacher_mask":
            for context in self.contexts:
                mask = mask & (
                    batch.context_masks[context] if isinstance(batch, TrainBatch) else batch.teacher[context].mask
                )
        return mask if self.name not in batch.routes else mask & (batch.routes[self.name] > 0)[:, None]

    def tokens(self, batch: TrainBatch | LossInputs) -> Tensor:
        """[B, T] bool: the tokens this term trains. A ``TrainBatch`` is enough unless the term ``needs_survey``."""
        mask, chosen = self.candidates(batch), self.select
        # what selects by masks alone reads nothing that a TrainBatch lacks
        return mask if chosen is None else mask & (chosen(batch, mask) > 0)  # type: ignore[arg-type]

    def token_scale(self, mask: Tensor, inputs: LossInputs) -> Tensor:
        """[B, T] the factor of each token's loss before the division: its rollout's route, divided by the row's tokens if the
        term is a mean over sequences."""
        scale = mask.to(inputs.logprobs.dtype)
        if self.name in inputs.routes:
            scale = scale * inputs.routes[self.name][:, None]
        return scale / mask.sum(-1, keepdim=True).clamp(min=1) if self.normalize.endswith("sequences") else scale

    def denominator(self, batch: TrainBatch | LossInputs) -> Tensor | int:
        """How many tokens or sequences the term is a mean over; a tensor where the device knows.

        Only ``tokens`` and ``sequences`` depend on what it selects.
        """
        sampled = batch.sampled_mask
        count: dict[str, Callable[[], Tensor | int]] = {
            "tokens": lambda: self.tokens(batch).sum(),
            "all_tokens": lambda: sampled.sum(),
            "sequences": lambda: self.tokens(batch).any(-1).sum(),
            "all_sequences": lambda: len(sampled),
            "max_tokens": lambda: sampled.any(-1).sum() * self.max_tokens,
        }
        return count[self.normalize]()

    def own_inputs(self, inputs: LossInputs) -> LossInputs:
        """The micro-batch at the term's temperature."""
        if self.temperature == 1.0:
            return inputs
        tempered = inputs.tempered[self.temperature]
        return replace(tempered, marker_mass=inputs.marker_mass, over_update=inputs.over_update)

    def evaluate(self, inputs: LossInputs) -> tuple[TermOutput, Tensor]:
        """The term's losses ``[B, T]``, and which of them count.

        Raises:
            ValueError: the losses are not ``[B, T]``.
        """
        inputs = self.own_inputs(inputs)
        mask = self.tokens(inputs)
        output = self.function(replace(inputs, tokens=mask))
        if output.per_token.shape != mask.shape:
            raise ValueError(
                f"objective term {self.name!r} returned a loss of shape {tuple(output.per_token.shape)}, "
                f"expected one number per token {tuple(mask.shape)}"
            )
        return output, mask


class MetricAccumulator:
    """Sums and counts over micro-batches: means of per-token quantities, and totals."""

    def __init__(self) -> None:
        self._sums = DeviceSums()
        self.totals: Counter[str] = Counter()

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        self._sums.add(name, values, mask)

    def count(self, name: str, number: int) -> None:
        """Adds to a total, which is logged as a sum."""
        self.totals[name] += number

    def absorb(self, other: MetricAccumulator) -> None:
        """Adds the sums and counts of another accumulator."""
        self._sums.absorb(other._sums)
        self.totals.update(other.totals)

    def means(self) -> Metrics:
        """Means and totals by name; a quantity without a single token is absent rather than 0. Reads the device, if it has anything new."""
        sums, counts = self._sums.read()
        means = {name: sums[name] / count for name, count in counts.items() if count}
        return means | {name: float(total) for name, total in self.totals.items()}

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: numbers, read from the device."""
        self._sums.read()
        return dict(self.__dict__)


@dataclass(frozen=True)
class Objective:
    """The loss of one optimizer update: a weighted sum of terms."""

    terms: tuple[Term, ...]

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        return tuple(dict.fromkeys(t.comparison for t in self.terms if t.comparison is not None))

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Those at which its terms read the models."""
        return tuple(dict.fromkeys(t.temperature for t in self.terms))

    @property
    def needs_ref(self) -> bool:
        """Whether a term, or a plug-in among its options, reads the reference model."""
        return any(t.spec.needs_ref for t in self.terms)

    @property
    def routes(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.terms)

    @property
    def needs_survey(self) -> bool:
        """Whether the models have to read the whole update before its first gradient."""
        return any(t.needs_survey for t in self.terms)

    def count(self, batches: Iterable[TrainBatch]) -> Totals:
        """Each term's denominator, counted over all micro-batches of one optimizer update, of an objective without a survey."""
        return Totals(self._denominators((t, batch) for batch in batches for t in self.terms))

    def survey(self, read: Sequence[LossInputs], gather: Callable[[Any], list[Any]] = lambda own: [own]) -> Totals:
        """The same, and what the terms' functions ask for, from what the models say.

        Args:
            read: the update's micro-batches on this rank, read without gradient
            gather: a rank's values -> those of all ranks
        """
        answers = {t.name: asked_for(t.evaluate, read, gather) for t in self.terms if t.reads_update}
        seen = ((t, with_answers(inputs, answers.get(t.name))) for inputs in read for t in self.terms)
        return Totals(self._denominators(seen), answers)

    def _denominators(self, parts: Iterable[tuple[Term, TrainBatch | LossInputs]]) -> Mapping[str, float]:
        counts: dict[str, Tensor | int] = {t.name: 0 for t in self.terms}
        for term, batch in parts:
            own = term.denominator(term.own_inputs(batch) if isinstance(batch, LossInputs) else batch)
            counts[term.name] = counts[term.name] + own
        return dict(zip(counts, read_counts(list(counts.values())), strict=True))

    def loss(self, inputs: LossInputs, totals: Totals, metrics: MetricAccumulator | None = None) -> Tensor:
        """This micro-batch's part of the loss; the parts of all micro-batches add up to the loss of the update.

        Args:
            inputs: of one micro-batch
            totals: of the whole update
            metrics: gets the terms' losses and metrics

        Raises:
            ValueError: a term's loss is not ``[B, T]``.
        """
        total = inputs.logprobs.sum() * 0.0  # keeps the graph where no term has a token in this micro-batch
        for term in self.terms:
            output, mask = term.evaluate(with_answers(inputs, totals.answers.get(term.name)))
            # where, not multiplication: 0 * nan from a padded position would poison the sum
            per_token = torch.where(mask, output.per_token, 0.0)
            part = (per_token * term.token_scale(mask, inputs)).sum() / max(totals.denominators[term.name], 1)
            total = total + float(term.weight) * part
            if metrics is not None:
                metrics.add(f"{term.name}/loss", per_token.detach(), mask)
                for name, values in output.metrics.items():
                    metrics.add(f"{term.name}/{name}", values.detach(), mask)
        return total
