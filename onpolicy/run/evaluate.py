"""Measuring a model on named sets of problems: avg@k, pass@k, maj@k, truncation, with intervals over problems."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import comb
from pathlib import Path
from statistics import fmean

from onpolicy.annotation.scoring import FinalPart, Reward, score_group
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.protocols import Generator
from onpolicy.types import RIGHT, Metrics, Prompt, Rollout, RolloutGroup, Sampling, ScoredGroup
from onpolicy.utils.disk import Room, write_whole
from onpolicy.utils.stats import interval

AT_ONCE = 1024
"""Rollouts in one call of the generator: what an evaluation that is cut off can lose."""


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
    graded: dict[str, list[bool]] = field(default_factory=dict)
    """What each of ``Evaluator.graders`` says."""
    digest: str = ""
    """Of the problem as it was asked and graded: another one may come to stand under the same id."""

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(map(float, self.right))

    def judged(self, prompt: Prompt) -> ScoredGroup:
        """As much of the judged rollouts as text telemetry reads; token ids are not kept, only how many there were."""
        rollouts = tuple(
            Rollout(
                prompt_ids=(),
                completion_ids=(0,) * length,
                rollout_logprobs=(0.0,) * length,
                text=text,
                finish_reason="length" if cut else "stop",
                policy_version=0,
            )
            for text, length, cut in zip(self.completions, self.lengths, self.truncated, strict=True)
        )
        return ScoredGroup(RolloutGroup(prompt=prompt, rollouts=rollouts), (), self.scores)


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
    graders: Sequence[Reward] = ()
    """Others that say what is right, reported beside ``reward``."""

    def __call__(self, folder: Path, *, resume: bool = False) -> Metrics:
        """Metrics ``eval/<set>/<what>``; every sample goes to ``<folder>/<set>.jsonl``, one line a problem.

        Args:
            folder: of this evaluation
            resume: keep each problem as soon as it is graded, and leave out those that the folder has already; every rollout has a
                seed of its own, so what comes out does not depend on where an evaluation was cut off
        """
        metrics: Metrics = {}
        for name, prompts in self.sets.items():
            results = self._results(prompts, folder / f"{name}.jsonl", resume)
            found = summary(results, self.k)
            if self.telemetry:
                found |= self.telemetry.brief([r.judged(p) for r, p in zip(results, prompts, strict=True)])
            metrics |= {f"eval/{name}/{what}": value for what, value in found.items()}
        return metrics

    def _results(self, prompts: Sequence[Prompt], path: Path, resume: bool) -> list[ProblemResult]:
        """Of every problem, in order."""
        known = read_results(path) if resume else {}
        missing = [p for p in prompts if p.id not in known or known[p.id].digest != digest(p)]
        step = max(1, AT_ONCE // self.sampling.group_size)
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            with _counted(self.generator, len(prompts) - len(missing) + start, len(prompts), self.sampling.group_size):
                groups = self.generator.generate(part, seed=self.seed, sampling=self.sampling)
            known |= {result.id: result for result in map(self._graded, groups)}
            if resume:
                self._write(path, known.values())
        results = [known[p.id] for p in prompts]
        self._write(path, results)
        return results

    def _write(self, path: Path, results: Iterable[ProblemResult]) -> None:
        text = "".join(json.dumps(asdict(r)) + "\n" for r in results)
        self.room(path, partial(write_whole, path, text))

    def _graded(self, group: RolloutGroup) -> ProblemResult:
        rewards = self._scores(group, self.reward)
        return ProblemResult(
            id=group.prompt.id,
            rewards=rewards,
            right=[score >= RIGHT for score in rewards],
            answers=[self.extract(r.text) for r in group.rollouts],
            lengths=[r.num_sampled for r in group.rollouts],
            truncated=[r.finish_reason == "length" for r in group.rollouts],
            completions=[r.text for r in group.rollouts],
            graded={g.name: [s >= RIGHT for s in self._scores(group, g)] for g in self.graders},
            digest=digest(group.prompt),
        )

    def _scores(self, group: RolloutGroup, reward: Reward) -> list[float]:
        # weight 1: `right` looks at the reward itself, whatever its share in training
        return [s.total for s in score_group(group, [replace(reward, weight=1.0)], self.final_part)]


def digest(prompt: Prompt) -> str:
    """Short; the same for the same question with the same fields."""
    asked = json.dumps([prompt.messages, prompt.fields], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def read_results(path: Path) -> dict[str, ProblemResult]:
    """By problem, of an evaluation that may have been cut off."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {result.id: result for result in (ProblemResult(**json.loads(line)) for line in lines)}


def summary(results: Sequence[ProblemResult], ks: Sequence[int]) -> Metrics:
    """Means over problems; ``/low`` and ``/high`` bound the 95 % interval of avg@n over problems, ``/<grader>`` is that grader's."""
    n = len(results[0].right)
    per_problem = [fmean(r.right) for r in results]
    low, high = interval(per_problem)
    metrics = {f"avg@{n}": fmean(per_problem), f"avg@{n}/low": low, f"avg@{n}/high": high}
    for k in ks:
        metrics[f"pass@{k}"] = fmean(pass_at_k(n, sum(r.right), k) for r in results)
        metrics[f"maj@{k}"] = fmean(maj_at_k(r.answers, r.right, k) for r in results)
    for grader in results[0].graded:
        said = [r.graded[grader] for r in results]
        metrics[f"avg@{n}/{grader}"] = fmean(map(fmean, said))
        metrics |= {f"pass@{k}/{grader}": fmean(pass_at_k(n, sum(s), k) for s in said) for k in ks}
        same = [a == b for s, r in zip(said, results, strict=True) for a, b in zip(s, r.right, strict=True)]
        metrics[f"agrees/{grader}"] = fmean(same)
    metrics["truncated"] = fmean(fmean(r.truncated) for r in results)
    metrics["completion_length"] = fmean(fmean(r.lengths) for r in results)
    metrics["problems"] = float(len(results))
    return metrics


@contextmanager
def _counted(generator: Generator, before: int, problems: int, samples: int) -> Iterator[None]:
    """Progress of one call as progress of the whole set."""
    report = generator.on_progress
    generator.on_progress = lambda done, _: report(before * samples + done, problems * samples)
    try:
        yield
    finally:
        generator.on_progress = report
