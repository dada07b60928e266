"""Per-token telemetry of a training step: how teacher and student differ at epistemic markers.

It reads the inputs of the loss (``LossInputs``) and the token classes that the annotator marked, each under a name of its own in
``spans``. It keeps sums, so the way in which a step is cut into micro-batches changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onpolicy.epistemic.ids import span_name
from onpolicy.types import REF, STUDENT, LossInputs, Metrics

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
    _sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _strata: dict[str, Tensor] = field(default_factory=dict)
    _entropies: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def observe(self, inputs: LossInputs) -> None:
        """One micro-batch."""
        mask, entropy = inputs.sampled_mask, inputs.entropy
        marked = {name: inputs.spans[span_name(name)] & mask for name in self.classes}
        markers = marked[self.lexicon]
        self._entropies.append(entropy[mask].cpu())
        begins = (
            markers & ~torch.nn.functional.pad(markers, (1, 0))[:, :-1]
        )  # later tokens of a marker are nearly certain
        self._add("entropy_at", entropy, begins)
        self._add("entropy_around", entropy, _around(markers) & mask & ~markers)
        self._add("probability", inputs.logprobs.exp(), begins)
        for context, scores in inputs.teacher.items():
            gap = scores.logprobs - inputs.logprobs
            for name in self.classes:
                self._add(f"gap/{context}/{name}", gap, marked[name] & scores.mask)
            self._stratify(context, gap, begins & scores.mask, scores.mask & ~markers, inputs)
        self._observe_mass(inputs)
        for comparison, values in inputs.divergences.items():
            in_context = inputs.teacher[comparison.context].mask
            self._add(f"divergence/{comparison.context}", values, in_context)
            for name in self.classes:
                self._add(f"divergence/{comparison.context}/{name}", values, marked[name] & in_context)

    def metrics(self) -> Metrics:
        """``epistemic/...``; what had not a single token is absent."""
        mean = {name[:-2]: self._sums[name] / self._sums[f"{name[:-2]}/n"] for name in self._sums if name.endswith("/s")
                if self._sums[f"{name[:-2]}/n"]}  # fmt: skip
        prefix = f"epistemic/{self.lexicon}"
        found = {f"{prefix}/{n}": mean[n] for n in ("entropy_at", "entropy_around", "probability") if n in mean}
        found |= {f"epistemic/{n}": value for n, value in mean.items() if n.startswith("gap/")}
        found |= {f"{prefix}/{n}": value for n, value in mean.items() if n.startswith("mass")}
        for context, table in self._strata.items():
            difference = matched_difference(table)
            if difference is not None:
                found[f"{prefix}/gap_matched/{context}"] = difference
        found |= self._shares()
        if any(map(len, self._entropies)):
            found["epistemic/fork_rate"] = self._fork_rate(torch.cat(self._entropies))
        self._sums.clear()
        self._strata.clear()
        self._entropies.clear()
        return found

    def seen(self) -> tuple[dict[str, float], dict[str, Tensor], list[Tensor]]:
        """All that was observed since the last metrics: sums, strata, entropies."""
        return dict(self._sums), dict(self._strata), list(self._entropies)

    def absorb(self, seen: tuple[dict[str, float], dict[str, Tensor], list[Tensor]]) -> None:
        """Adds what another has observed."""
        sums, strata, entropies = seen
        for name, value in sums.items():
            self._sums[name] += value
        for context, table in strata.items():
            self._strata[context] = self._strata.get(context, 0.0) + table
        self._entropies += entropies

    def state(self) -> dict[str, Any]:
        return {"fork_threshold": self.fork_threshold}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.fork_threshold = state["fork_threshold"]

    def _add(self, name: str, values: Tensor, mask: Tensor) -> None:
        self._sums[f"{name}/s"] += float(values[mask].double().sum())
        self._sums[f"{name}/n"] += int(mask.sum())

    def _observe_mass(self, inputs: LossInputs) -> None:
        """G, the mean of log M(teacher) - log M(student) over the positions where the student could have said a marker."""
        student = inputs.marker_mass.get((STUDENT, self.lexicon))
        if student is None:
            return
        self._add("mass/student", student.exp(), inputs.sampled_mask)
        chance = inputs.sampled_mask & (student.exp() >= OPPORTUNITY)
        self._sums["opportunities"] += int(chance.sum())
        for context, scores in inputs.teacher.items():
            theirs = inputs.marker_mass[context, self.lexicon]
            self._add(f"mass/{context}", theirs.exp(), scores.mask)
            self._add(f"mass_gap/{context}", theirs - student, chance & scores.mask)
        if (REF, self.lexicon) in inputs.marker_mass:
            self._add("mass/ref", inputs.marker_mass[REF, self.lexicon].exp(), inputs.sampled_mask)

    def _stratify(self, context: str, gap: Tensor, markers: Tensor, others: Tensor, inputs: LossInputs) -> None:
        """[strata, 4]: sum and number of u over markers, sum and number over other tokens."""
        edges = torch.tensor(ENTROPY_EDGES, device=gap.device, dtype=inputs.entropy.dtype)
        lengths = inputs.sampled_mask.sum(-1, keepdim=True).clamp(min=1)
        quarter = ((inputs.sampled_mask.cumsum(-1) - 1).clamp(min=0) * QUARTERS // lengths).clamp(max=QUARTERS - 1)
        stratum = torch.bucketize(inputs.entropy, edges) * QUARTERS + quarter
        table = torch.zeros((len(ENTROPY_EDGES) + 1) * QUARTERS, 4, dtype=torch.float64)
        for column, mask in ((0, markers), (2, others)):
            where = stratum[mask].cpu()
            table[:, column].index_add_(0, where, gap[mask].double().cpu())
            table[:, column + 1].index_add_(0, where, torch.ones(len(where), dtype=torch.float64))
        self._strata[context] = self._strata.get(context, 0.0) + table

    def _shares(self) -> Metrics:
        """By context and class of tokens: the class's share of the divergence, and that share divided by its share of the tokens."""
        found: Metrics = {}
        for key in [k for k in self._sums if k.startswith("divergence/") and k.count("/") == 3 and k.endswith("/s")]:
            _, context, name, _ = key.split("/")
            total, tokens = self._sums[f"divergence/{context}/s"], self._sums[f"divergence/{context}/n"]
            own = self._sums[f"divergence/{context}/{name}/n"]
            if total and own:
                found[f"epistemic/divergence_share/{context}/{name}"] = share = self._sums[key] / total
                found[f"epistemic/divergence_concentration/{context}/{name}"] = share / (own / tokens)
        return found

    def _fork_rate(self, entropies: Tensor) -> float:
        if self.fork_threshold is None:
            self.fork_threshold = float(entropies.double().quantile(FORK_QUANTILE)) if len(entropies) < 2**24 else 0.672
        return float((entropies > self.fork_threshold).double().mean())


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
