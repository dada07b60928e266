"""Judged groups -> examples: what the teacher may see, what is marked, credit, and which terms a rollout goes to.
Rewards come before, because a successful sibling is known only by its reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from onpolicy.annotation.leakage import repeated_share
from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.routes import Route
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.protocols import ContextBuilder
from onpolicy.types import RIGHT, Example, Message, Metrics, Prompt, Rollout, RolloutGroup, ScoredGroup


class StaleRollouts(RuntimeError):
    """Rollouts come from other weights than the ones being trained: a weight sync was skipped or failed."""


@dataclass(frozen=True)
class Annotator:
    """Everything that is decided about a rollout before it becomes tensors."""

    renderer: Renderer
    contexts: Mapping[str, ContextBuilder]
    credit: Callable[[Sequence[float]], Sequence[float]]
    queries: ContextQueries
    max_teacher_prompt_tokens: int
    drop_too_long: bool
    staleness: int = 0
    """How many versions old a token may be."""
    routes: Mapping[str, Route] = field(default_factory=dict)
    """By loss term."""
    spans: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    classes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Span finders whose marks are for telemetry; they ask nothing."""
    telemetry: TextTelemetry | None = None

    def annotate(self, groups: Sequence[ScoredGroup], *, version: int) -> tuple[list[Example], Metrics]:
        """Examples in order, and what there is to know about them.

        Raises:
            StaleRollouts: a token comes from weights more than ``staleness`` versions below ``version``, or from newer ones.
            PromptTooLong: a privileged prompt is over the limit and ``rendering.too_long`` is ``refuse``.
        """
        for judged in groups:
            _refuse_stale(judged.group, version, self.staleness)
        self.queries.sampled.clear()
        built = self.queries.settle(self._started(groups), version=version)
        dropped: Counter[str] = Counter()
        examples = [
            self._example(judged, i, j, advantage, built, dropped)
            for i, judged in enumerate(groups)
            for j, advantage in enumerate(advantages(judged, self.credit))
        ]
        metrics = _metrics(examples, dropped, self.contexts, self.spans)
        metrics |= rollout_metrics(groups)
        if self.queries.sampled:
            metrics["context/sampled_tokens"] = float(sum(self.queries.sampled))
        if self.staleness:
            metrics |= staleness_metrics(groups, version)
        if self.telemetry is not None:
            metrics |= self.telemetry(groups)
        return examples, metrics

    def _started(self, groups: Sequence[ScoredGroup]) -> dict[Hashable, tuple[Prompt, Any]]:
        """Every context and every span finder called for every rollout; some have to ask before they answer."""
        finders = {**self.spans, **self.classes}
        plugins = {("context", n): f for n, f in self.contexts.items()} | {("span", n): f for n, f in finders.items()}
        return {
            (i, j, *name): (judged.group.prompt, function(judged.group, j, judged.scores))
            for i, judged in enumerate(groups)
            for j in range(len(judged.scores))
            for name, function in plugins.items()
        }

    def _example(
        self,
        judged: ScoredGroup,
        group_id: int,
        index: int,
        advantage: float,
        built: Mapping[Hashable, Any],
        dropped: Counter[str],
    ) -> Example:
        rollout, scored = judged.group.rollouts[index], judged.scored[index]
        contexts = {
            context: self._prompt_ids(context, judged.group.prompt, built[group_id, index, "context", context], dropped)
            for context in self.contexts
        }
        return Example(
            rollout=rollout,
            prompt=judged.group.prompt,
            group_id=group_id,
            reward=scored.total,
            reward_breakdown=scored.parts,
            advantage=advantage,
            teacher_prompt_ids={context: ids for context, ids in contexts.items() if ids is not None},
            routes={term: route(judged.scores, index) for term, route in self.routes.items()},
            spans={
                name: _marked(self.renderer, rollout, built[group_id, index, "span", name] or ())
                for name in (*self.spans, *self.classes)
            },
        )

    def _prompt_ids(
        self, context: str, prompt: Prompt, messages: Sequence[Message] | None, dropped: Counter[str]
    ) -> tuple[int, ...] | None:
        if messages is None:
            return None
        try:
            return self.renderer.prompt_ids(messages, limit=self.max_teacher_prompt_tokens)
        except PromptTooLong as error:
            if not self.drop_too_long:
                where = f"contexts.{context}, prompt {prompt.id!r} (rendering.max_teacher_prompt_tokens)"
                raise PromptTooLong(error.num_tokens, error.limit, where) from error
            dropped[context] += 1
            return None


def _marked(renderer: Renderer, rollout: Rollout, spans: Sequence[tuple[int, int]]) -> tuple[bool, ...]:
    """[T] which completion tokens lie inside of spans of the rollout's text, of which observed tokens are no part."""
    inside = renderer.marked(rollout.sampled_ids, spans)
    if not rollout.sampled_mask:
        return inside
    sampled = iter(inside)
    return tuple(is_sampled and next(sampled) for is_sampled in rollout.sampled_mask)


def advantages(judged: ScoredGroup, credit: Callable[[Sequence[float]], Sequence[float]]) -> list[float]:
    """credit(rewards that are no bonus) + bonus - the group's mean bonus.

    A bonus inside the reward would be divided by the group's standard deviation, which turns any difference, however
    small, into advantages of order one where all answers are right.
    """
    bonuses = [s.bonus for s in judged.scored]
    credited = credit([s.credited for s in judged.scored])
    return [a + (bonus - fmean(bonuses)) for a, bonus in zip(credited, bonuses, strict=True)]


def _refuse_stale(group: RolloutGroup, version: int, staleness: int) -> None:
    for rollout in group.rollouts:
        oldest, newest = rollout.policy_version, max(rollout.token_versions, default=rollout.policy_version)
        if not version - staleness <= oldest <= newest <= version:
            found = f"{oldest}" if oldest == newest else f"{oldest} to {newest}"
            raise StaleRollouts(
                f"prompt {group.prompt.id!r}: sampled with weights of version {found}, training is at {version} and "
                f"generator.staleness is {staleness}; generator.update_weights was skipped or failed"
            )


def staleness_metrics(groups: Sequence[ScoredGroup], version: int) -> Metrics:
    """How many versions old the tokens are, and how many rollouts went on under new weights."""
    rollouts = [r for judged in groups for r in judged.group.rollouts]
    ages = [
        version - sampled
        for r in rollouts
        for sampled in r.select_sampled(r.token_versions) or (r.policy_version,) * r.num_sampled
    ]
    return {
        "rollout/staleness/mean": sum(ages) / max(len(ages), 1),
        "rollout/staleness/max": float(max(ages, default=0)),
        "rollout/resumed": fmean(len(set(r.token_versions)) > 1 for r in rollouts),
    }


def rollout_metrics(groups: Sequence[ScoredGroup]) -> Metrics:
    """What can be said of rollouts and their scores alone."""
    rollouts = [r for judged in groups for r in judged.group.rollouts]
    lengths = [r.num_sampled for r in rollouts]
    right = [[score >= RIGHT for score in judged.scores] for judged in groups]
    return {
        "rollout/completion_length/mean": fmean(lengths),
        "rollout/completion_length/max": float(max(lengths)),
        "rollout/truncated": fmean(r.finish_reason == "length" for r in rollouts),
        "rollout/aborted": fmean(r.finish_reason == "abort" for r in rollouts),
        "group/right": fmean(map(fmean, right)),
        "group/any_right": fmean(map(any, right)),
        "group/mixed": fmean(any(r) and not all(r) for r in right),
    }


def _metrics(
    examples: Sequence[Example], dropped: Counter[str], contexts: Iterable[str], spans: Iterable[str]
) -> Metrics:
    tokens = sum(e.rollout.num_sampled for e in examples)
    metrics = {
        "rollout/tokens": float(tokens),
        "reward/mean": fmean(e.reward for e in examples),
        "reward/std": pstdev([e.reward for e in examples]),
        "credit/nonzero": fmean(e.advantage != 0.0 for e in examples),
    }
    for name in dict.fromkeys(part for e in examples for part in e.reward_breakdown):
        metrics[f"reward/{name}"] = fmean(e.reward_breakdown[name] for e in examples if name in e.reward_breakdown)
    for context in contexts:
        metrics |= {f"context/{context}/{what}": value for what, value in _context_metrics(examples, context).items()}
        metrics[f"context/{context}/dropped"] = float(dropped[context])
    for term in examples[0].routes:
        metrics[f"route/{term}"] = fmean(e.routes[term] for e in examples)
    for name in spans:
        metrics[f"spans/{name}"] = sum(sum(e.spans[name]) for e in examples) / max(tokens, 1)
    return metrics


def _context_metrics(examples: Sequence[Example], context: str) -> Metrics:
    seen = [(e, e.teacher_prompt_ids[context]) for e in examples if context in e.teacher_prompt_ids]
    metrics = {"share": len(seen) / len(examples), "tokens": fmean(len(ids) for _, ids in seen) if seen else 0.0}
    repeated = [repeated_share(ids, e.rollout.prompt_ids, e.rollout.sampled_ids) for e, ids in seen]
    known = [share for share in repeated if share is not None]
    return metrics | ({"repeated": fmean(known)} if known else {})
