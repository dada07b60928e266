"""A step's rows -> examples: rewards that compare siblings, contexts, routes, spans, credit and telemetry, in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onpolicy.annotation.build import build_annotator, build_rewards
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.integrations.verl.names import READING
from onpolicy.integrations.verl.response_reader import ResponseReader
from onpolicy.integrations.verl.rows import grouped, rollout_group
from onpolicy.integrations.verl.scoring import score_rows
from onpolicy.types import Example, Metrics, ScoredGroup


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

    def annotate(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Example], Metrics]:
        """The examples, in the order of the rows, and the step's metrics.

        Args:
            rows: of a step, without padding rows, in any order

        Raises:
            onpolicy.rewards.base.RewardError: a reward that compares siblings raised or returned no number.
            PromptTooLong: a privileged prompt that holds nothing sampled is over the limit, and ``rendering.overlong`` is ``error``.
        """
        sets = grouped(rows)
        groups = [self._scored([rows[i] for i in numbers]) for numbers in sets]
        found, metrics = self._annotator.annotate(groups, version=0)
        by_row = dict(zip((i for numbers in sets for i in numbers), found, strict=True))
        return [by_row[i] for i in range(len(rows))], metrics

    def _scored(self, rows: Sequence[Mapping[str, Any]]) -> ScoredGroup:
        """One group, with what its texts say."""
        known = [self._reader.unpack(row) for row in rows]
        self._tell_of(known.count(None))
        texts = [row.text if row else None for row in known]
        longest = self._resolved.generator.settings.max_tokens
        group = rollout_group(rows, self._renderer, max_tokens=longest, texts=texts)
        scored = score_rows(
            group, rows, self.rewards, self._renderer.final_answer_text, right=self._resolved.correctness_name
        )
        read = (row.read if row else self._reader.read(group, i) for i, row in enumerate(known))
        return replace(scored, texts=tuple(read))

    def _tell_of(self, unread: int) -> None:
        """Once: the driver reads texts, which all devices wait for."""
        if unread and not self._told:
            self._told = True
            print(
                "onpolicy: the driver reads texts that no agent-loop worker of this version has read; expected "
                f"actor_rollout_ref.rollout.agent.agent_loop_manager_class={READING}, or no such key."
            )
