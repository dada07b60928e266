"""Scored groups -> examples: teacher prompts, spans, advantages, and the loss terms that a rollout goes to.

Groups are scored before, because a successful sibling is known only by its reward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import compress
from typing import Any

from onpolicy.annotation.credit import group_mean
from onpolicy.annotation.metrics import environment_metrics, example_metrics, rollout_metrics, staleness_metrics
from onpolicy.annotation.privileged import PrivilegedRollouts
from onpolicy.annotation.queries import ContextQueries
from onpolicy.annotation.reading import ReadText, TextReader
from onpolicy.annotation.routes import Route, share_of
from onpolicy.annotation.sampled import reads_sampled
from onpolicy.data.alignment import mask_of
from onpolicy.data.rendering import PromptTooLong, Renderer
from onpolicy.epistemic.marked import marked_rollout
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.protocols import ContextBuilder
from onpolicy.types import Example, Message, Metrics, Prompt, Rollout, RolloutGroup, ScoredGroup
from onpolicy.utils.errors import UserError


class StaleRollouts(UserError, RuntimeError):
    """Rollouts come from other weights than the ones being trained: a weight sync was skipped or failed."""


@dataclass(frozen=True)
class Annotator:
    """Turns scored groups into examples: everything that is decided about a rollout before it becomes tensors."""

    renderer: Renderer
    """Of the student's prompts, and of the teacher's unless there is another."""
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
    teacher_renderer: Renderer | None = None
    """Of the teacher's prompts, where they are rendered in another thinking mode."""
    privileged: PrivilegedRollouts | None = None

    def annotate(self, groups: Sequence[ScoredGroup], *, version: int) -> tuple[list[Example], Metrics]:
        """Returns the examples in the order of the rollouts, and the step's metrics about them.

        Privileged rollouts follow those of their group. They have no advantage, and no metric but their own counts them.

        Raises:
            StaleRollouts: a token comes from weights more than ``staleness`` versions below ``version``, or from newer ones.
            PromptTooLong: a privileged prompt that holds nothing sampled is over the limit, and ``rendering.overlong`` is ``error``.
        """
        for scored in groups:
            _refuse_stale(scored.group, version, self.staleness)
        self.queries.sampled.clear()
        built, texts = self._built(groups, version)
        prompts = TeacherPrompts(
            self.teacher_renderer or self.renderer, self.max_teacher_prompt_tokens, self.drop_too_long
        )
        examples = [
            example
            for i, scored in enumerate(groups)
            for j, advantage in enumerate(advantages(scored, self.credit))
            for example in self._examples(scored, i, j, advantage, built, texts, prompts)
        ]
        metrics = example_metrics(examples, prompts.dropped, self.contexts, self.spans)
        if self.privileged is not None:
            others, counts = self._privileged_examples(self.privileged, groups, prompts, version)
            examples = sorted([*examples, *others], key=lambda example: example.group_id)
            metrics |= counts
        metrics |= rollout_metrics(groups) | environment_metrics(groups) | dose_metrics(groups, self.credit)
        if self.queries.sampled:
            metrics["context/sampled_tokens"] = float(sum(self.queries.sampled))
        if self.staleness:
            metrics |= staleness_metrics(groups, version)
        if self.telemetry is not None:
            metrics |= self.telemetry.metrics(
                [
                    marked_rollout(by_segment(groups[i], j)[k], j, i, text.facts)
                    for (i, j, k), text in texts.items()
                    if text.facts is not None
                ]
            )
        return examples, metrics

    def _privileged_examples(
        self, privileged: PrivilegedRollouts, groups: Sequence[ScoredGroup], prompts: TeacherPrompts, version: int
    ) -> tuple[list[Example], Metrics]:
        """Examples of the privileged rollouts, whose siblings are each other."""
        found, metrics = privileged.sample(groups, version=version)
        built, texts = self._built(list(found.values()), version)
        examples = [
            replace(
                example,
                group_id=group_id,
                routes={
                    term: share_of(route, scored.scores, j, scored.group.rollouts, privileged=True)
                    for term, route in self.routes.items()
                },
            )
            for k, (group_id, scored) in enumerate(found.items())
            for j in range(len(scored.scores))
            for example in self._examples(scored, k, j, 0.0, built, texts, prompts)
        ]
        return privileged.under_students_prompt(examples), metrics

    def _built(
        self, groups: Sequence[ScoredGroup], version: int
    ) -> tuple[dict[Any, Any], dict[tuple[int, int, int], ReadText]]:
        """Calls every context for every rollout and every span finder for every segment, and runs those that ask the model to their end.

        Returns:
            What they found; and what each text says, by the group's place, the rollout's in it and the segment's in that, read here unless
            it has been.
        """
        calls: dict[Hashable, tuple[Callable[..., Any], ScoredGroup, int]] = {}
        texts: dict[tuple[int, int, int], ReadText] = {}
        for i, scored in enumerate(groups):
            for j, rollout in enumerate(scored.group.rollouts):
                if rollout.failed:
                    continue
                calls |= {(i, j, "context", name): (build, scored, j) for name, build in self.contexts.items()}
                for k, segment in enumerate(by_segment(scored, j)):
                    calls |= {(i, j, k, "span", name): (find, segment, j) for name, find in self.spans.items()}
                    known = scored.texts if segment is scored else None
                    texts[i, j, k] = self.reader.read(segment.group, j) if known is None else known[j]
        started = {key: (g.group.prompt, function(g.group, j, g.scores)) for key, (function, g, j) in calls.items()}
        built = self.queries.run(
            started, version=version, is_sampled=lambda key: reads_sampled(*calls[key], replies=False)
        )
        return built, texts

    def _examples(
        self,
        scored: ScoredGroup,
        group_id: int,
        index: int,
        advantage: float,
        built: Mapping[Hashable, Any],
        texts: Mapping[tuple[int, int, int], ReadText],
        prompts: TeacherPrompts,
    ) -> list[Example]:
        """One for each segment of a rollout, which share all that was decided about it; none for one whose environment failed."""
        rollout, own = scored.group.rollouts[index], scored.rewards[index]
        if rollout.failed:
            return []
        routes = {
            term: share_of(route, scored.scores, index, scored.group.rollouts) for term, route in self.routes.items()
        }
        return [
            Example(
                rollout=segment,
                prompt=scored.group.prompt,
                group_id=group_id,
                reward=own.total if scored.graded[index] else None,
                reward_breakdown=own.reward_breakdown,
                advantage=advantage,
                teacher_prompt_ids=self._teacher_prompts(scored, index, segment.history, group_id, built, prompts),
                routes=routes,
                spans=self._spans(segment, texts[group_id, index, k].classes, (group_id, index, k), built),
            )
            for k, segment in enumerate(rollout.segments)
        ]

    def _teacher_prompts(
        self,
        scored: ScoredGroup,
        index: int,
        history: tuple[Message, ...],
        group_id: int,
        built: Mapping[Hashable, Any],
        prompts: TeacherPrompts,
    ) -> dict[str, tuple[int, ...]]:
        """By context what the teacher reads before a segment: the context's messages, then the conversation as the student has it."""
        found = {}
        for name, build in self.contexts.items():
            messages = built[group_id, index, "context", name]
            is_sampled = partial(reads_sampled, build, scored, index)
            ids = prompts.render(
                name,
                scored.group.prompt,
                None if messages is None else (*messages, *history),
                (lambda: True) if history else is_sampled,
            )
            if ids is not None:
                found[name] = ids
        return found

    def _spans(
        self,
        rollout: Rollout,
        classes: Mapping[str, Sequence[tuple[int, int]]],
        place: tuple[int, int, int],
        built: Mapping[Hashable, Any],
    ) -> dict[str, tuple[bool, ...]]:
        spans = {
            name: self.reader.alignment.ranges(rollout.sampled_ids, built[*place, "span", name] or (), rollout.text)
            for name in self.spans
        }
        return {name: _sampled_mask(rollout, ranges) for name, ranges in {**spans, **classes}.items()}

    @cached_property
    def reader(self) -> TextReader:
        """Reads the texts that nobody has read yet."""
        return TextReader(self.classes, self.telemetry, self.renderer)


class TeacherPrompts:
    """Renders what teachers read in one step: equal messages once, however many rollouts and contexts have them."""

    def __init__(self, renderer: Renderer, limit: int, drop_too_long: bool) -> None:
        self.dropped: Counter[str] = Counter()
        """By context, how many rollouts have no teacher because their prompt is too long."""
        self._renderer, self._limit, self._drop_too_long = renderer, limit, drop_too_long
        self._rendered: dict[tuple[tuple[tuple[str, str], ...], ...], tuple[int, ...] | PromptTooLong] = {}

    def render(
        self,
        context: str,
        prompt: Prompt,
        messages: Sequence[Message] | None,
        is_sampled: Callable[[], bool] = lambda: False,
    ) -> tuple[int, ...] | None:
        """Token ids of a rollout's privileged prompt; None where its context is empty, or too long and to be dropped.

        One that holds what was sampled is dropped whatever the config says: nobody can know its length before the run, and one rollout that
        is too long for its siblings must not end it.

        Args:
            context: its name
            prompt: the problem
            messages: what the context shows
            is_sampled: whether it shows something that was sampled; asked about a prompt that is too long

        Raises:
            PromptTooLong: it is over the limit, holds nothing sampled, and ``rendering.overlong`` is ``error``.
        """
        if messages is None:
            return None
        key = tuple(tuple(zip(message, map(str, message.values()), strict=True)) for message in messages)
        if key not in self._rendered:
            self._rendered[key] = self._ids(messages)
        found = self._rendered[key]
        if not isinstance(found, PromptTooLong):
            return found
        if not self._drop_too_long and not is_sampled():
            where = f"contexts.{context}, prompt {prompt.id!r} (rendering.max_teacher_prompt_tokens)"
            raise PromptTooLong(found.num_tokens, found.limit, where) from found
        self.dropped[context] += 1
        return None

    def _ids(self, messages: Sequence[Message]) -> tuple[int, ...] | PromptTooLong:
        try:
            return self._renderer.prompt_ids(messages, limit=self._limit)
        except PromptTooLong as error:
            return error


def advantages(scored: ScoredGroup, credit: Callable[[Sequence[float]], Sequence[float]]) -> list[float]:
    """credit(rewards that are no bonus) + bonus - the group's mean bonus; 0 for rollouts that were not graded, which count in neither.

    A bonus inside the reward would be divided by the group's standard deviation, which turns any difference, however
    small, into advantages of order one where all rollouts are correct.
    """
    graded = list(compress(scored.rewards, scored.graded))
    if not graded:
        return [0.0] * len(scored.scores)
    normalised = credit([reward.normalised_reward for reward in graded])
    bonuses = group_mean([reward.bonus for reward in graded])
    found = iter([a + bonus for a, bonus in zip(normalised, bonuses, strict=True)])
    return [next(found) if is_graded else 0.0 for is_graded in scored.graded]


def dose_metrics(
    groups: Sequence[ScoredGroup], credit: Callable[[Sequence[float]], Sequence[float]]
) -> dict[str, float]:
    """``credit/dose``: root mean square of what the other rewards change in the rollouts' advantages, over that of the advantages that
    correctness alone would give.

    A reward's weight does not say how much it weighs where ``credit`` divides by a standard deviation; this does, in either place. Absent
    where correctness gives no advantage.
    """
    alone, changed = [], []
    for scored in groups:
        own = [r.correctness for r, is_graded in zip(scored.rewards, scored.graded, strict=True) if is_graded]
        whole = list(compress(advantages(scored, credit), scored.graded))
        by_correctness = list(credit(own)) if own else []
        alone += by_correctness
        changed += [a - b for a, b in zip(whole, by_correctness, strict=True)]
    size = sum(a * a for a in alone)
    return {"credit/dose": (sum(c * c for c in changed) / size) ** 0.5} if size else {}


def by_segment(scored: ScoredGroup, index: int) -> list[ScoredGroup]:
    """The group with each segment of a rollout in the rollout's place, in order; the last one is the group itself."""
    rollouts = scored.group.rollouts
    return [
        replace(
            scored,
            group=replace(scored.group, rollouts=(*rollouts[:index], segment, *rollouts[index + 1 :])),
        )
        for segment in rollouts[index].earlier
    ] + [scored]


def _sampled_mask(rollout: Rollout, ranges: Sequence[tuple[int, int]]) -> tuple[bool, ...]:
    """[T] which completion tokens lie inside of ranges of the sampled ones; observed tokens are no part of any."""
    inside = mask_of(ranges, rollout.num_sampled)
    if not rollout.sampled_mask:
        return inside
    sampled = iter(inside)
    return tuple(is_sampled and next(sampled) for is_sampled in rollout.sampled_mask)


def _refuse_stale(group: RolloutGroup, version: int, staleness: int) -> None:
    for rollout in (segment for whole in group.rollouts if not whole.failed for segment in whole.segments):
        oldest, newest = rollout.policy_version, max(rollout.token_versions, default=rollout.policy_version)
        if not version - staleness <= oldest <= newest <= version:
            found = f"{oldest}" if oldest == newest else f"{oldest} to {newest}"
            raise StaleRollouts(
                f"prompt {group.prompt.id!r}: sampled with weights of version {found}, training is at {version} and "
                f"generator.max_staleness is {staleness}; generator.update_weights was skipped or failed"
            )
