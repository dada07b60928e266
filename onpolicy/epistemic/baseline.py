"""How often the reference model uses epistemic markers on each problem: the target of rewards, the reference of suppression."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev

from onpolicy.epistemic.marked import MarkedRollout
from onpolicy.rewards.uncertainty import paid, per_1k
from onpolicy.types import Metrics, Prompt
from onpolicy.utils.disk import atomic_write, retry_while_disk_full


@dataclass(frozen=True)
class ProblemBaseline:
    """The reference model's answers to one problem; lists have one entry for each."""

    tokens: list[int]
    correct: list[bool | None]
    paid: list[int]
    """Markers that count for rewards (``onpolicy.rewards.uncertainty.paid``) of the lexicon that is followed."""
    markers: dict[str, list[int]]
    """Lexicon -> markers, counted as telemetry does."""


@dataclass(frozen=True)
class Baseline:
    """The reference model by problem."""

    problem_baselines: Mapping[str, ProblemBaseline] = field(default_factory=dict)
    """By the prompt's id."""
    metrics: Metrics = field(default_factory=dict)
    """What telemetry says of the reference model's first rollouts: step 0 of the log."""

    def add_columns(self, prompt: Prompt) -> Prompt:
        """The prompt with ``ref_rate`` and ``ref_std``, the rewards' rate per 1,000 tokens, if it was measured."""
        problem_baseline = self.problem_baselines.get(prompt.id)
        if problem_baseline is None:
            return prompt
        rates = [per_1k(n, tokens) for n, tokens in zip(problem_baseline.paid, problem_baseline.tokens, strict=True)]
        return replace(prompt, fields={**prompt.fields, "ref_rate": fmean(rates), "ref_std": pstdev(rates)})

    def merge(self, other: Baseline) -> Baseline:
        """This baseline and another's problems; the metrics of the first measurement stay."""
        return Baseline({**self.problem_baselines, **other.problem_baselines}, self.metrics or other.metrics)

    @retry_while_disk_full(lambda self, path: path)
    def save(self, path: Path) -> None:
        report = {
            "metrics": self.metrics,
            "problems": {name: asdict(problem_baseline) for name, problem_baseline in self.problem_baselines.items()},
        }
        atomic_write(path, json.dumps(report) + "\n")


def load_baseline(path: Path) -> Baseline:
    report = json.loads(path.read_text())
    return Baseline(
        {name: ProblemBaseline(**problem_baseline) for name, problem_baseline in report["problems"].items()},
        report["metrics"],
    )


def problem_baselines(marked: Sequence[MarkedRollout], lexicon: str, spacing: int) -> dict[str, ProblemBaseline]:
    """Baselines by prompt id, from rollouts of the reference model.

    Args:
        marked: rollouts of the reference model
        lexicon: the lexicon of the rewards that compare with the baseline
        spacing: their spacing, words between two markers that both count
    """
    problems: dict[str, list[MarkedRollout]] = {}
    for m in marked:
        problems.setdefault(m.prompt.id, []).append(m)
    return {
        name: ProblemBaseline(
            tokens=[m.tokens for m in group],
            correct=[m.correct for m in group],
            paid=[paid(m.text, list(m.prompt.messages), lexicon, spacing) for m in group],
            markers={name: [len(m.spans[name]) for m in group] for name in group[0].spans},
        )
        for name, group in problems.items()
    }
