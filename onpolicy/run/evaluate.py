"""Evaluates a model on named sets of problems: avg@k, pass@k, maj@k, truncation, with intervals over problems."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from statistics import fmean

from onpolicy.annotation.build import build_rewards, text_telemetry
from onpolicy.annotation.scoring import FinalPart, Reward, score_group
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.models import ModelHandle
from onpolicy.protocols import Generator
from onpolicy.rewards.extract import extract_answer
from onpolicy.run.evaluation_files import ProblemResult, read_results, write_results
from onpolicy.run.loading import drop_overlong, section_prompts
from onpolicy.types import CORRECT_THRESHOLD, Metrics, Prompt, Rollout, RolloutGroup, Sampling, ScoredGroup
from onpolicy.utils.stats import bootstrap_ci

AT_ONCE = 1024
"""Rollouts in one call of the generator: the most that an evaluation that is cut off can lose."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is correct, from n samples of which c are.

    1 - C(n-c, k) / C(n, k): Chen et al., arXiv 2107.03374, equation 1.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int) -> bool:
    """Whether the most common answer among the first k samples is correct; None does not vote, ties go to the earliest.

    Self-consistency, arXiv 2203.11171.
    """
    votes = Counter(a for a in answers[:k] if a is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]
    return right[list(answers).index(winner)]


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
    telemetry: TextTelemetry | None = None
    graders: Sequence[Reward] = ()
    """Further rewards that grade every sample, reported in addition to ``reward``."""

    def evaluate(self, folder: Path, *, resume: bool = False) -> Metrics:
        """Metrics ``eval/<set>/<what>``; every sample goes to ``<folder>/<set>.jsonl``, one line a problem.

        Args:
            folder: where this evaluation is kept
            resume: keep each problem as soon as it is graded, and skip those that the folder has already; every rollout has a seed of
                its own, so the results do not depend on where an evaluation was cut off
        """
        metrics: Metrics = {}
        for name, prompts in self.sets.items():
            results = self._results(prompts, folder / f"{name}.jsonl", resume)
            found = evaluation_summary(results, self.k)
            if self.telemetry:
                found |= self.telemetry.summarise(
                    [as_scored_group(r, p) for r, p in zip(results, prompts, strict=True)]
                )
            metrics |= {f"eval/{name}/{what}": value for what, value in found.items()}
        return metrics

    def _results(self, prompts: Sequence[Prompt], path: Path, resume: bool) -> list[ProblemResult]:
        """The results of every problem, in order."""
        known = read_results(path) if resume else {}
        missing = [p for p in prompts if p.id not in known or known[p.id].digest != digest(p)]
        step = max(1, AT_ONCE // self.sampling.group_size)
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            with _counted(self.generator, len(prompts) - len(missing) + start, len(prompts), self.sampling.group_size):
                groups = self.generator.generate(part, seed=self.seed, sampling=self.sampling)
            known |= {result.id: result for result in map(self._graded, groups)}
            if resume:
                write_results(path, known.values())
        results = [known[p.id] for p in prompts]
        write_results(path, results)
        return results

    def _graded(self, group: RolloutGroup) -> ProblemResult:
        rewards = self._scores(group, self.reward)
        return ProblemResult(
            id=group.prompt.id,
            rewards=rewards,
            right=[score >= CORRECT_THRESHOLD for score in rewards],
            answers=[self.extract(r.text) for r in group.rollouts],
            lengths=[r.num_sampled for r in group.rollouts],
            truncated=[r.finish_reason == "length" for r in group.rollouts],
            completions=[r.text for r in group.rollouts],
            graded={g.name: [s >= CORRECT_THRESHOLD for s in self._scores(group, g)] for g in self.graders},
            digest=digest(group.prompt),
        )

    def _scores(self, group: RolloutGroup, reward: Reward) -> list[float]:
        # weight 1: correctness looks at the reward itself, whatever its weight in training
        return [s.total for s in score_group(group, [replace(reward, weight=1.0)], self.final_part)]


def build_evaluator(resolved: ResolvedConfig, model: ModelHandle, generator: Generator) -> Evaluator | None:
    """The evaluator of ``eval.sets``; None where there are none."""
    settings, renderer = resolved.config.eval, model.renderer
    if not resolved.eval_sets:
        return None
    graders = [Reward(name=g.name, weight=1.0, function=g.bind()) for g in resolved.graders]
    graders = graders or [r for r in build_rewards(resolved) if r.name == resolved.correctness_name]
    sets = {
        name: drop_overlong(section_prompts(s, f"eval.sets.{name}")[: s.settings.problems], renderer, drop=False)
        for name, s in resolved.eval_sets.items()
    }
    sampling = Sampling(
        group_size=settings.samples_per_problem,
        max_tokens=settings.max_tokens or resolved.generator.settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
    )
    return Evaluator(
        generator=generator,
        sets=sets,
        reward=graders[0],
        sampling=sampling,
        k=settings.pass_at,
        final_part=renderer.final_answer_text,
        extract=extract_answer,
        seed=resolved.config.seed,
        telemetry=text_telemetry(resolved, renderer),
        graders=graders[1:],
    )


def digest(prompt: Prompt) -> str:
    """A short hash, the same for the same messages with the same fields."""
    asked = json.dumps([prompt.messages, prompt.fields], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def as_scored_group(result: ProblemResult, prompt: Prompt) -> ScoredGroup:
    """As much of a problem's scored rollouts as text telemetry reads; token ids are not kept, only how many there were."""
    rollouts = tuple(
        Rollout(
            prompt_ids=(),
            completion_ids=(0,) * length,
            rollout_logprobs=(0.0,) * length,
            text=text,
            finish_reason="length" if cut else "stop",
            policy_version=0,
        )
        for text, length, cut in zip(result.completions, result.lengths, result.truncated, strict=True)
    )
    return ScoredGroup(RolloutGroup(prompt=prompt, rollouts=rollouts), (), tuple(map(float, result.right)))


def evaluation_summary(results: Sequence[ProblemResult], ks: Sequence[int]) -> Metrics:
    """Means over problems; ``/low`` and ``/high`` bound the 95 % interval of avg@n over problems, ``/<grader>`` is by that grader."""
    n = len(results[0].right)
    per_problem = [fmean(r.right) for r in results]
    low, high = bootstrap_ci(per_problem)
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
    """Reports the progress of one call as progress of the whole set."""
    report = generator.on_progress
    generator.on_progress = lambda done, _: report(before * samples + done, problems * samples)
    try:
        yield
    finally:
        generator.on_progress = report
