"""Measuring a model on named sets of problems: avg@k, pass@k, maj@k, truncation, with intervals over problems."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import comb
from pathlib import Path
from statistics import fmean

from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.intervals import interval
from onpolicy.protocols import Generator
from onpolicy.room import Room, write_whole
from onpolicy.routing import RIGHT
from onpolicy.sampling import Sampling
from onpolicy.scoring import FinalPart, JudgedGroup, Reward, score_group
from onpolicy.types import Metrics, Prompt, RolloutGroup


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is right, from n samples of which c are: 1 - C(n-c, k) / C(n, k).

    Chen et al., arXiv 2107.03374, equation 1.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int) -> bool:
    """Whether the commonest answer among the first k samples is right; None does not vote, ties go to the earliest.

    Self-consistency, arXiv 2203.11171.
    """
    votes = Counter(a for a in answers[:k] if a is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]
    return right[list(answers).index(winner)]


@dataclass(frozen=True)
class ProblemResult:
    """All samples of one problem."""

    id: str
    rewards: list[float]
    right: list[bool]
    answers: list[str | None]
    """Extracted final answers; None where there is none."""
    lengths: list[int]
    truncated: list[bool]
    completions: list[str]


@dataclass(frozen=True)
class Evaluator:
    """Samples every set and grades it."""

    generator: Generator
    sets: Mapping[str, Sequence[Prompt]]
    reward: Reward
    sampling: Sampling
    """``group_size`` is the number of samples per problem."""
    k: Sequence[int]
    final_part: FinalPart
    extract: Callable[[str], str | None]
    seed: int
    room: Room
    telemetry: TextTelemetry | None = None

    def __call__(self, folder: Path) -> Metrics:
        """Metrics ``eval/<set>/<what>``; every sample goes to ``<folder>/<set>.jsonl``."""
        metrics: Metrics = {}
        for name, prompts in self.sets.items():
            groups = self.generator.generate(prompts, seed=self.seed, sampling=self.sampling)
            judged = [self._judged(group) for group in groups]
            results = [self._graded(group) for group in judged]
            path, text = folder / f"{name}.jsonl", "".join(json.dumps(asdict(r)) + "\n" for r in results)
            self.room(path, partial(write_whole, path, text))
            found = summary(results, self.k) | (self.telemetry.brief(judged) if self.telemetry else {})
            metrics |= {f"eval/{name}/{what}": value for what, value in found.items()}
        return metrics

    def _judged(self, group: RolloutGroup) -> JudgedGroup:
        # weight 1: `right` looks at the reward itself, whatever its share in training
        scored = score_group(group, [replace(self.reward, weight=1.0)], self.final_part)
        return JudgedGroup(group, tuple(scored), tuple(s.total for s in scored))

    def _graded(self, judged: JudgedGroup) -> ProblemResult:
        rollouts = judged.group.rollouts
        return ProblemResult(
            id=judged.group.prompt.id,
            rewards=list(judged.scores),
            right=[score >= RIGHT for score in judged.scores],
            answers=[self.extract(r.text) for r in rollouts],
            lengths=[len(r.completion_ids) for r in rollouts],
            truncated=[r.finish_reason == "length" for r in rollouts],
            completions=[r.text for r in rollouts],
        )


def summary(results: Sequence[ProblemResult], ks: Sequence[int]) -> Metrics:
    """Means over problems; ``/low`` and ``/high`` bound the 95 % interval of avg@n over problems."""
    n = len(results[0].right)
    per_problem = [fmean(r.right) for r in results]
    low, high = interval(per_problem)
    metrics = {f"avg@{n}": fmean(per_problem), f"avg@{n}/low": low, f"avg@{n}/high": high}
    for k in ks:
        metrics[f"pass@{k}"] = fmean(pass_at_k(n, sum(r.right), k) for r in results)
        metrics[f"maj@{k}"] = fmean(maj_at_k(r.answers, r.right, k) for r in results)
    metrics["truncated"] = fmean(fmean(r.truncated) for r in results)
    metrics["completion_length"] = fmean(fmean(r.lengths) for r in results)
    metrics["problems"] = float(len(results))
    return metrics
