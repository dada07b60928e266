"""Evaluates a model on named sets of problems: avg@k, pass@k, maj@k, truncation, with intervals over problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import comb, nan
from pathlib import Path
from statistics import fmean

from onpolicy.annotation.build import build_rewards, text_telemetry
from onpolicy.annotation.scoring import FinalPart, Reward, score_group, with_finals
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.digest import digest
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.models import ModelHandle
from onpolicy.protocols import Generator
from onpolicy.rewards.equality import by_equality
from onpolicy.rewards.extract import extract_answer
from onpolicy.run.evaluation_files import ProblemResult, read_results, write_results
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
    """Whether the most common answer among the first k samples is correct; ties go to the earliest.

    Samples vote as they were graded: those that are correct have the same answer, others the same where ``equal_answers`` says so.
    None, no answer, does not vote unless it was graded correct. Self-consistency, arXiv 2203.11171.
    """
    wrong = by_equality([None if correct else a for a, correct in zip(answers[:k], right[:k], strict=True)])
    votes = [-1 if correct else vote for vote, correct in zip(wrong, right[:k], strict=True)]
    counts = Counter(vote for vote in votes if vote is not None)
    return bool(counts) and counts.most_common(1)[0][0] == -1


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
    steps: int | None = None
    """Of the run."""

    def evaluate(self, folder: Path, *, resume: bool = False) -> Metrics:
        """Metrics ``eval/<set>/<what>``; every sample goes to ``<folder>/<set>.jsonl``, one line a problem.

        Args:
            folder: where this evaluation is kept
            resume: keep each problem as soon as it is graded, and skip those that the folder has already; every rollout has a seed of
                its own, so the results do not depend on where an evaluation was cut off
        """
        metrics: Metrics = {}
        before = 0
        for name, prompts in self.sets.items():
            results = self._results(prompts, folder / f"{name}.jsonl", resume, before)
            before += len(prompts)
            found = evaluation_summary(results, self.k)
            if self.telemetry:
                found |= self.telemetry.summarise(
                    [as_scored_group(r, p, self.final_part) for r, p in zip(results, prompts, strict=True)]
                )
            metrics |= {f"eval/{name}/{what}": value for what, value in found.items()}
        return metrics

    def _results(self, prompts: Sequence[Prompt], path: Path, resume: bool, before: int) -> list[ProblemResult]:
        """The results of every problem of a set, in order; ``before`` problems of other sets are done."""
        in_all = sum(map(len, self.sets.values()))
        known = read_results(path) if resume else {}
        missing = [p for p in prompts if p.id not in known or known[p.id].digest != digest(p)]
        step = max(1, AT_ONCE // self.sampling.group_size)
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            done = before + len(prompts) - len(missing) + start
            with _counted(self.generator, done, in_all, self.sampling.group_size):
                groups = self.generator.generate(part, seed=self.seed, sampling=self.sampling)
            known |= {result.id: result for result in map(self._graded, groups)}
            if resume:
                write_results(path, known.values())
        results = [known[p.id] for p in prompts]
        write_results(path, results)
        return results

    def _graded(self, group: RolloutGroup) -> ProblemResult:
        group = with_finals(group, self.final_part)
        rewards = self._scores(group, self.reward)
        return ProblemResult(
            id=group.prompt.id,
            rewards=rewards,
            right=_verdicts(rewards),
            answers=[self.extract(r.answer_text) for r in group.rollouts],
            lengths=[r.num_written for r in group.rollouts],
            truncated=[r.finish_reason == "length" for r in group.rollouts],
            completions=[r.whole_text for r in group.rollouts],
            graded={g.name: _verdicts(self._scores(group, g)) for g in self.graders},
            digest=digest(group.prompt),
        )

    def _scores(self, group: RolloutGroup, reward: Reward) -> list[float | None]:
        """By rollout, the reward itself, whatever its weight in training; None where it was not graded."""
        found = score_group(group, [replace(reward, weight=1.0)], self.final_part, steps=self.steps)
        return [s.reward_breakdown.get(reward.name) for s in found]


def _verdicts(scores: Sequence[float | None]) -> list[bool | None]:
    return [None if score is None else score >= CORRECT_THRESHOLD for score in scores]


def build_evaluator(
    resolved: ResolvedConfig, model: ModelHandle, generator: Generator, sets: Mapping[str, Sequence[Prompt]]
) -> Evaluator | None:
    """The evaluator of the sets under ``eval.sets``, whose problems are given; None where there are none."""
    settings, renderer = resolved.config.eval, model.renderer
    if not sets:
        return None
    graders = [Reward(name=g.name, weight=1.0, function=g.bind()) for g in resolved.graders]
    graders = graders or [r for r in build_rewards(resolved) if r.name == resolved.correctness_name]
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
        steps=resolved.config.steps,
    )


def as_scored_group(result: ProblemResult, prompt: Prompt, final_part: FinalPart) -> ScoredGroup:
    """As much of a problem's scored rollouts as text telemetry reads; token ids are not kept, only how many there were."""
    rollouts = tuple(
        Rollout(
            prompt_ids=(),
            completion_ids=(0,) * length,
            rollout_logprobs=(0.0,) * length,
            text=text,
            final=final_part(text),
            finish_reason="length" if cut else "stop",
            policy_version=0,
        )
        for text, length, cut in zip(result.completions, result.lengths, result.truncated, strict=True)
    )
    scores = (nan if verdict is None else float(verdict) for verdict in result.right)
    return ScoredGroup(RolloutGroup(prompt=prompt, rollouts=rollouts), (), tuple(scores))


def evaluation_summary(results: Sequence[ProblemResult], ks: Sequence[int]) -> Metrics:
    """Means over problems; ``/low`` and ``/high`` bound the 95 % interval of avg@n over problems, ``/<grader>`` is by that grader.

    Samples that were not graded are left out and counted under ``not_graded``; so is a problem with fewer than k graded samples from
    pass@k and maj@k.
    """
    n = len(results[0].right)
    verdicts = [_graded(r.right) for r in results]
    per_problem = [fmean(right) for right in verdicts if right]
    metrics: Metrics = {}
    if per_problem:
        low, high = bootstrap_ci(per_problem)
        metrics = {f"avg@{n}": fmean(per_problem), f"avg@{n}/low": low, f"avg@{n}/high": high}
    for k in ks:
        metrics |= _pass_at(k, verdicts, f"pass@{k}")
        majorities = [
            maj_at_k([a for a, v in zip(r.answers, r.right, strict=True) if v is not None], right, k)
            for r, right in zip(results, verdicts, strict=True)
            if len(right) >= k
        ]
        metrics |= {f"maj@{k}": fmean(majorities)} if majorities else {}
    for grader in results[0].graded:
        said = [r.graded[grader] for r in results]
        graded = [_graded(verdict) for verdict in said]
        accuracies = [fmean(right) for right in graded if right]
        metrics |= {f"avg@{n}/{grader}": fmean(accuracies)} if accuracies else {}
        for k in ks:
            metrics |= _pass_at(k, graded, f"pass@{k}/{grader}")
        same = [a == b for s, r in zip(said, results, strict=True) for a, b in zip(s, r.right, strict=True)]
        metrics[f"agrees/{grader}"] = fmean(same)
    if not_graded := sum(n - len(right) for right in verdicts):
        metrics["not_graded"] = float(not_graded)
    metrics["truncated"] = fmean(fmean(r.truncated) for r in results)
    metrics["completion_length"] = fmean(fmean(r.lengths) for r in results)
    metrics["problems"] = float(len(results))
    return metrics


def _graded(verdicts: Sequence[bool | None]) -> list[bool]:
    return [verdict for verdict in verdicts if verdict is not None]


def _pass_at(k: int, verdicts: Sequence[Sequence[bool]], name: str) -> Metrics:
    """Mean over the problems with k graded samples; empty without any."""
    found = [pass_at_k(len(right), sum(right), k) for right in verdicts if len(right) >= k]
    return {name: fmean(found)} if found else {}


@contextmanager
def _counted(generator: Generator, before: int, problems: int, samples: int) -> Iterator[None]:
    """Reports the progress of one call as progress of the whole evaluation."""
    report = generator.on_progress
    generator.on_progress = lambda done, _, tokens: report(before * samples + done, problems * samples, tokens)
    try:
        yield
    finally:
        generator.on_progress = report
