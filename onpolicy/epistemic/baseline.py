"""How the start model itself expresses doubt on each problem: what rewards aim at, and what suppression is measured against."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev

from onpolicy.epistemic.marked import Marked
from onpolicy.rewards.doubt import paid, per_1k
from onpolicy.types import Metrics, Prompt
from onpolicy.utils.disk import write_whole


@dataclass(frozen=True)
class Habit:
    """The start model's answers to one problem; lists have one entry for each."""

    tokens: list[int]
    right: list[bool]
    paid: list[int]
    """Markers that count for rewards (``onpolicy.rewards.doubt.paid``) of the lexicon that is followed."""
    markers: dict[str, list[int]]
    """Lexicon -> markers, counted as telemetry does."""


@dataclass(frozen=True)
class Baseline:
    """The start model by problem."""

    habits: Mapping[str, Habit] = field(default_factory=dict)
    """By the prompt's id."""
    metrics: Metrics = field(default_factory=dict)
    """What telemetry says of the start model's first rollouts: step 0 of the log."""

    def with_columns(self, prompt: Prompt) -> Prompt:
        """The prompt with ``start_rate`` and ``start_std``, the rewards' rate per 1,000 tokens, if it was measured."""
        habit = self.habits.get(prompt.id)
        if habit is None:
            return prompt
        rates = [per_1k(n, tokens) for n, tokens in zip(habit.paid, habit.tokens, strict=True)]
        return replace(prompt, fields={**prompt.fields, "start_rate": fmean(rates), "start_std": pstdev(rates)})

    def joined(self, other: Baseline) -> Baseline:
        """This one and another; the first measurement is what step 0 shows."""
        return Baseline({**self.habits, **other.habits}, self.metrics or other.metrics)

    def save(self, path: Path) -> None:
        report = {"metrics": self.metrics, "habits": {name: asdict(habit) for name, habit in self.habits.items()}}
        write_whole(path, json.dumps(report) + "\n")


def load(path: Path) -> Baseline:
    report = json.loads(path.read_text())
    return Baseline({name: Habit(**habit) for name, habit in report["habits"].items()}, report["metrics"])


def habits(marked: Sequence[Marked], lexicon: str, spacing: int) -> dict[str, Habit]:
    """Of the start model's rollouts; ``lexicon`` and ``spacing`` are those of the rewards that compare with it."""
    problems: dict[str, list[Marked]] = {}
    for m in marked:
        problems.setdefault(m.prompt.id, []).append(m)
    return {
        name: Habit(
            tokens=[m.tokens for m in group],
            right=[m.right for m in group],
            paid=[paid(m.text, list(m.prompt.messages), lexicon, spacing) for m in group],
            markers={name: [len(m.spans[name]) for m in group] for name in group[0].spans},
        )
        for name, group in problems.items()
    }
