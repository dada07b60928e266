"""Per-token telemetry of a training step: how teacher and student differ at epistemic markers.

It reads the inputs of the loss (``LossInputs``) and the token classes that the annotator marked, each under a name of its own in
``spans``. It keeps sums, so the way in which a step is cut into micro-batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onpolicy.epistemic.ids import span_name
from onpolicy.types import REF, STUDENT, LossInputs, Metrics
from onpolicy.utils.device_sums import DeviceSums, exact_dtype

ENTROPY_EDGES = (0.05, 0.3, 0.7, 1.2, 2.0)
"""Nats; with the quarter of the response they make the strata in which markers and other tokens are compared."""
QUARTERS = 4
OPPORTUNITY = 0.01
"""Mass on markers from which a position is an opportunity to say one."""
AROUND = 5
"""Tokens on either side of a marker that count as around it."""
FORK_QUANTILE = 0.8
"""A fork is a position whose entropy exceeds this quantile of the first step's."""


@dataclass
class TokenTelemetry:
    """Accumulates over the micro-batches of a step; ``metrics`` returns the step's numbers and starts again."""

    lexicon: str
    """Whose markers are looked at closely."""
    classes: Sequence[str]
    """Names of all classes of tokens, the lexicon among them."""
    fork_threshold: float | None = None
    """Nats; None before the first step."""
    _sums: DeviceSums = field(default_factory=DeviceSums)
    _strata: dict[str, Tensor] = field(default_factory=dict)
    _entropies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Values and which of them count, so that nobody waits for how many those are."""

    @torch.no_grad()
    def observe(self, inputs: LossInputs) -> None:
        """One micro-batch."""
        mask, entropy = inputs.sampled_mask, inputs.entropy
        marked = {name: inputs.spans[span_name(name)] & mask for name in self.classes}
        markers = marked[self.lexicon]
        self._entropies.append((entropy.detach().flatten(), mask.flatten()))
        begins = (
            markers & ~torch.nn.functional.pad(markers, (1, 0))[:, :-1]
        )  # later tokens of a marker are nearly certain
        self._sums.add("entropy_at", entropy, begins)
        self._sums.add("entropy_around", entropy, _around(markers) & mask & ~markers)
        self._sums.add("probability", inputs.logprobs.exp(), begins)
        for context, scores in inputs.teacher.items():
            gap = scores.logprobs - inputs.logprobs
            for name in self.classes:
                self._sums.add(f"gap/{context}/{name}", gap, marked[name] & scores.mask)
            self._stratify(context, gap, begins & scores.mask, scores.mask & ~markers, inputs)
        self._observe_mass(inputs)
        for comparison, values in inputs.divergences.items():
            in_context = inputs.teacher[comparison.context].mask
            self._sums.add(f"divergence/{comparison.context}", values, in_context)
            for name in self.classes:
                self._sums.add(f"divergence/{comparison.context}/{name}", values, marked[name] & in_context)

    def metrics(self) -> Metrics:
        """``epistemic/...``; what had not a single token is absent. Reads the device, if it has anything new."""
        sums, strata, entropies = self.seen()
        mean = {name: value / number for name, (value, number) in sums.items() if number}
        prefix = f"epistemic/{self.lexicon}"
        found = {f"{prefix}/{n}": mean[n] for n in ("entropy_at", "entropy_around", "probability") if n in mean}
        found |= {f"epistemic/{n}": value for n, value in mean.items() if n.startswith("gap/")}
        found |= {f"{prefix}/{n}": value for n, value in mean.items() if n.startswith("mass")}
        for context, table in strata.items():
            difference = matched_difference(table)
            if difference is not None:
                found[f"{prefix}/gap_matched/{context}"] = difference
        found |= _shares(sums)
        if len(entropies):
            found["epistemic/fork_rate"] = self._fork_rate(entropies)
        self._sums.clear()
        self._strata.clear()
        self._entropies.clear()
        return found

    def seen(self) -> tuple[dict[str, tuple[float, int]], dict[str, Tensor], Tensor]:
        """All that was observed since the last metrics, read from the device: sums and numbers, strata, entropies."""
        sums, counts = self._sums.read()
        names = list(self._strata)
        if names:
            self._strata = dict(zip(names, torch.stack([self._strata[name] for name in names]).cpu(), strict=True))
        if self._entropies:
            values = torch.cat([values for values, _ in self._entropies]).cpu()
            values = values[torch.cat([mask for _, mask in self._entropies]).cpu()]
            self._entropies = [(values, torch.ones(len(values), dtype=torch.bool))]
        return (
            {name: (sums[name], counts[name]) for name in sums},
            dict(self._strata),
            self._entropies[0][0] if self._entropies else torch.empty(0),
        )

    def absorb(self, seen: tuple[dict[str, tuple[float, int]], dict[str, Tensor], Tensor]) -> None:
        """Adds what another has observed, after ``seen``."""
        sums, strata, entropies = seen
        for name, (value, number) in sums.items():
            self._sums.add_read(name, value, number)
        for context, table in strata.items():
            self._strata[context] = self._strata.get(context, 0.0) + table
        self._entropies.append((entropies, torch.ones(len(entropies), dtype=torch.bool)))

    def state(self) -> dict[str, Any]:
        return {"fork_threshold": self.fork_threshold}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.fork_threshold = state["fork_threshold"]

    def _observe_mass(self, inputs: LossInputs) -> None:
        """G, the mean of log M(teacher) - log M(student) over the positions where the student could have said a marker."""
        student = inputs.marker_mass.get((STUDENT, self.lexicon))
        if student is None:
            return
        self._sums.add("mass/student", student.exp(), inputs.sampled_mask)
        chance = inputs.sampled_mask & (student.exp() >= OPPORTUNITY)
        for context, scores in inputs.teacher.items():
            theirs = inputs.marker_mass[context, self.lexicon]
            self._sums.add(f"mass/{context}", theirs.exp(), scores.mask)
            self._sums.add(f"mass_gap/{context}", theirs - student, chance & scores.mask)
        if (REF, self.lexicon) in inputs.marker_mass:
            self._sums.add("mass/ref", inputs.marker_mass[REF, self.lexicon].exp(), inputs.sampled_mask)

    def _stratify(self, context: str, gap: Tensor, markers: Tensor, others: Tensor, inputs: LossInputs) -> None:
        """[strata, 4]: sum and number of u over markers, sum and number over other tokens."""
        edges = torch.tensor(ENTROPY_EDGES, device=gap.device, dtype=inputs.entropy.dtype)
        lengths = inputs.sampled_mask.sum(-1, keepdim=True).clamp(min=1)
        quarter = ((inputs.sampled_mask.cumsum(-1) - 1).clamp(min=0) * QUARTERS // lengths).clamp(max=QUARTERS - 1)
        stratum = torch.bucketize(inputs.entropy, edges) * QUARTERS + quarter
        strata = torch.arange((len(ENTROPY_EDGES) + 1) * QUARTERS, device=gap.device)
        within, gaps = stratum.flatten() == strata[:, None], gap.detach().flatten().to(exact_dtype(gap.device))
        columns = []
        for mask in (markers, others):
            chosen = within & mask.flatten()
            columns += [torch.where(chosen, gaps, 0.0).sum(-1), chosen.sum(-1).to(gaps.dtype)]
        table = torch.stack(columns, dim=1)
        self._strata[context] = self._strata[context] + table if context in self._strata else table

    def _fork_rate(self, entropies: Tensor) -> float:
        if self.fork_threshold is None:
            self.fork_threshold = float(entropies.double().quantile(FORK_QUANTILE)) if len(entropies) < 2**24 else 0.672
        return float((entropies > self.fork_threshold).double().mean())


def _shares(sums: Mapping[str, tuple[float, int]]) -> Metrics:
    """By context and class of tokens: the class's share of the divergence, and that share divided by its share of the tokens."""
    found: Metrics = {}
    for key in [k for k in sums if k.startswith("divergence/") and k.count("/") == 2]:
        _, context, name = key.split("/")
        (total, tokens), (value, own) = sums[f"divergence/{context}"], sums[key]
        if total and own:
            found[f"epistemic/divergence_share/{context}/{name}"] = share = value / total
            found[f"epistemic/divergence_concentration/{context}/{name}"] = share / (own / tokens)
    return found


def matched_difference(table: Tensor) -> float | None:
    """Mean over markers of u minus the mean u of other tokens of their stratum; None where no stratum has both.

    Args:
        table: [strata, 4] sum and number over markers, sum and number over others
    """
    both = (table[:, 1] > 0) & (table[:, 3] > 0)
    if not both.any():
        return None
    sums, counts, other_sums, other_counts = table[both].T
    return float(((sums / counts - other_sums / other_counts) * counts).sum() / counts.sum())


def _around(markers: Tensor) -> Tensor:
    """[B, T]: within a few tokens of a marker."""
    wide = torch.nn.functional.max_pool1d(markers.float()[:, None], 2 * AROUND + 1, stride=1, padding=AROUND)
    return wide[:, 0] > 0
