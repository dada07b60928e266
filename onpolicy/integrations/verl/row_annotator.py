"""A step's rows -> examples: rewards that compare siblings, contexts, routes, spans, credit and telemetry, in the driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onpolicy.annotation.build import build_annotator, build_rewards
from onpolicy.annotation.reading import ReadText
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.integrations.verl.conversation_rows import by_rollout, has_failed
from onpolicy.integrations.verl.names import READING
from onpolicy.integrations.verl.response_reader import ReadResponse, ResponseReader
from onpolicy.integrations.verl.rows import grouped, rollout_group
from onpolicy.integrations.verl.scoring import score_rows
from onpolicy.rollout.environments import tell_failures
from onpolicy.types import Example, Metrics, RolloutGroup, ScoredGroup


class RowAnnotator:
    """What each text says is joined where a worker has read it, and read here where none has."""

    def __init__(self, resolved: ResolvedConfig, renderer: Renderer, *, max_teacher_prompt_tokens: int) -> None:
        """
        Args:
            resolved: the config
            renderer: the student's
            max_teacher_prompt_tokens: tokens of the longest prompt that a teacher may read
        """
        self.rewards = build_rewards(resolved)
        self._told = False
        self._resolved, self._renderer, self._reader = resolved, renderer, ResponseReader(resolved, renderer)
        self._annotator = build_annotator(
            resolved,
            renderer,
            max_teacher_prompt_tokens=max_teacher_prompt_tokens,
            queries=None,  # ``settings.problems`` has refused every context that asks
        )

    def annotate(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Example | None], Metrics]:
        """The examples, in the order of the rows, and the step's metrics. None stands for a rollout whose environment failed.

        Args:
            rows: of a step, without padding rows, in any order

        Raises:
            onpolicy.rewards.base.RewardError: a reward that compares siblings raised or returned no number.
            onpolicy.rollout.environments.EnvironmentBroken: the environment failed in every rollout.
            PromptTooLong: a privileged prompt that holds nothing sampled is over the limit, and ``rendering.overlong`` is ``error``.
        """
        groups, places = [], list[int]()
        for numbers in grouped(rows):
            own = [rows[i] for i in numbers]
            rollouts = by_rollout(own)
            groups.append(self._scored(own, rollouts))
            for rollout, segments in zip(groups[-1].group.rollouts, rollouts, strict=True):
                places += () if rollout.failed else (numbers[i] for i in segments)
        outcomes = [rollout.outcome for scored in groups for rollout in scored.group.rollouts]
        failures = Counter(outcome.failure for outcome in outcomes if outcome is not None and outcome.failure)
        tell_failures(failures, len(outcomes), print)
        found, metrics = self._annotator.annotate(groups, version=0)
        by_row = dict(zip(places, found, strict=True))
        return [by_row.get(i) for i in range(len(rows))], metrics

    def _scored(self, rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Sequence[int]]) -> ScoredGroup:
        """One group, with what its texts say.

        Args:
            rows: of the group
            rollouts: the rows of each
        """
        known = [None if has_failed(row) else self._reader.unpack(row) for row in rows]
        self._tell_of(sum(found is None and not has_failed(row) for row, found in zip(rows, known, strict=True)))
        texts = [row.text if row else None for row in known]
        longest = self._resolved.generator.settings.max_tokens
        group = rollout_group(rows, self._renderer, max_tokens=longest, texts=texts)
        last = [segments[-1] for segments in rollouts]
        scored = score_rows(
            group,
            [rows[i] for i in last],
            self.rewards,
            self._renderer.final_answer_text,
            right=self._resolved.correctness_name,
        )
        return replace(scored, texts=tuple(self._read(group, j, known[i]) for j, i in enumerate(last)))

    def _read(self, group: RolloutGroup, index: int, known: ReadResponse | None) -> ReadText:
        """What the last text of a rollout says."""
        if group.rollouts[index].failed:
            return ReadText(None, {})
        return known.read if known else self._reader.read(group, index)

    def _tell_of(self, unread: int) -> None:
        """Once: the driver reads texts, which all devices wait for."""
        if unread and not self._told:
            self._told = True
            print(
                "onpolicy: the driver reads texts that no agent-loop worker of this version has read; expected "
                f"actor_rollout_ref.rollout.agent.agent_loop_manager_class={READING}, or no such key."
            )
