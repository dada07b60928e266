"""How the start model itself expresses doubt on each problem: what rewards aim at, and what suppression is measured against."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev

from onpolicy.evaluate import interval
from onpolicy.protocols import Generator
from onpolicy.types import Example, Metrics, Prompt, RolloutGroup
from rewards.doubt import SPACING, paid, per_1k
from rewards.lexicon import find

EPSILON = 0.5
"""Added to both rates before their logarithms are compared, markers per 1,000 tokens."""


@dataclass(frozen=True)
class Baseline:
    """The start model's rates by problem, markers of one lexicon per 1,000 tokens."""

    lexicon: str
    paid: Mapping[str, Sequence[float]]
    """Of each rollout, counted as rewards do (``rewards.doubt.paid``)."""
    pooled: Mapping[str, float]
    """Of all rollouts of a problem together, counted as telemetry does."""

    def with_columns(self, prompt: Prompt) -> Prompt:
        """The prompt with ``start_rate`` and ``start_std``, if it was measured."""
        rates = self.paid.get(prompt.id)
        if rates is None:
            return prompt
        return replace(prompt, fields={**prompt.fields, "start_rate": fmean(rates), "start_std": pstdev(rates)})

    def suppression(self, examples: Sequence[Example]) -> Metrics:
        """S = mean over problems of log((rate + .5) / (start rate + .5)), with a bootstrap interval over problems; below 0: less doubt."""
        groups: dict[str, list[Example]] = {}
        for example in examples:
            if example.prompt.id in self.pooled:
                groups.setdefault(example.prompt.id, []).append(example)
        if not groups:
            return {}
        changes = []
        for name, group in groups.items():
            now = pooled_rate(
                group[0].prompt, [(e.rollout.text, len(e.rollout.completion_ids)) for e in group], self.lexicon
            )
            changes.append(math.log((now + EPSILON) / (self.pooled[name] + EPSILON)))
        low, high = interval(changes)
        prefix = f"epistemic/{self.lexicon}/suppression"
        return {
            prefix: fmean(changes),
            f"{prefix}/low": low,
            f"{prefix}/high": high,
            f"{prefix}/problems": float(len(changes)),
        }

    def joined(self, other: Baseline) -> Baseline:
        """This one and another of the same lexicon."""
        return Baseline(self.lexicon, {**self.paid, **other.paid}, {**self.pooled, **other.pooled})

    def save(self, path: Path) -> None:
        report = {"lexicon": self.lexicon, "paid": dict(self.paid), "pooled": dict(self.pooled)}
        path.write_text(json.dumps(report) + "\n")


def load(path: Path) -> Baseline:
    return Baseline(**json.loads(path.read_text()))


def measure(generator: Generator, prompts: Sequence[Prompt], *, samples: int, lexicon: str, seed: int) -> Baseline:
    """Samples each problem so often with the weights now in the generator."""
    groups = generator.generate(prompts, seed=seed, sampling=replace(generator.sampling, group_size=samples))
    return Baseline(
        lexicon=lexicon,
        paid={g.prompt.id: [_paid_rate(g, i, lexicon) for i in range(len(g.rollouts))] for g in groups},
        pooled={
            g.prompt.id: pooled_rate(g.prompt, [(r.text, len(r.completion_ids)) for r in g.rollouts], lexicon)
            for g in groups
        },
    )


def pooled_rate(prompt: Prompt, texts: Sequence[tuple[str, int]], lexicon: str) -> float:
    """Markers per 1,000 tokens over several answers, given with their numbers of tokens."""
    question = "\n".join(m["content"] for m in prompt.messages)
    count = sum(len(find(text, lexicon, prompt=question, merge=True)) for text, _ in texts)
    return per_1k(count, sum(tokens for _, tokens in texts))


def _paid_rate(group: RolloutGroup, index: int, lexicon: str) -> float:
    rollout = group.rollouts[index]
    return per_1k(paid(rollout.text, list(group.prompt.messages), lexicon, SPACING), len(rollout.completion_ids))
