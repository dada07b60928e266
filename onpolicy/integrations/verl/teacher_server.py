"""A frozen teacher on verl's own teacher servers, which reads a privileged prompt of ours.

For teachers that do not fit next to the student. Each trajectory is scored alone and at once, so contexts that use siblings have nothing to
show. Under our trainer the losses are ours, as far as they read nothing of the teacher but the sampled token and its most likely ones;
under verl's own they are those of its ``distillation`` section.

    actor_rollout_ref.rollout.agent.agent_loop_manager_class=onpolicy.integrations.verl.teacher_server.ServedTeacher
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import ray
import torch
from torch import Tensor
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ

from onpolicy.annotation.scoring import with_finals
from onpolicy.data.rendering import PromptTooLong
from onpolicy.integrations.verl.agent_loop import ReadingWorker
from onpolicy.integrations.verl.names import SECTION
from onpolicy.integrations.verl.rows import rollout_group
from onpolicy.integrations.verl.settings import longest_teacher_prompt, served, unpack_config
from onpolicy.models import student_renderer, teacher_renderer
from onpolicy.types import Message
from onpolicy.utils.errors import ConfigError

FIELDS = ("teacher_ids", "teacher_logprobs")
"""verl's columns of what the teacher says: ``[P + R, n]``."""


class ServedTeacherWorker(ReadingWorker):
    """Runs verl's agent loops; the teacher scores the response after a privileged prompt."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        ours = self.config.actor_rollout_ref.get(SECTION)
        self._ours = ours is not None
        resolved = served(self.config) if ours is None else unpack_config(ours)
        ((self._name, plugin),) = resolved.contexts.items()
        self._context, self._longest = plugin.bind(), longest_teacher_prompt(resolved)
        self._renderer = student_renderer(resolved, self.tokenizer, resolved.config.model.path)
        self._teacher_renderer = teacher_renderer(resolved, self._renderer)

    async def _compute_teacher_logprobs(
        self,
        output: AgentLoopOutput,
        prompt_ids: list[int],
        response_ids: list[int],
        validate: bool,
        sample_kwargs: Any = None,
    ) -> None:
        """Raises ConfigError where the context has nothing to show under verl's own losses, which need a teacher for every row."""
        if not self.distillation_enabled or validate:
            return
        row = {**sample_kwargs, "prompts": torch.tensor(prompt_ids), "responses": torch.tensor(response_ids)}
        sampled = rollout_group([row], self._renderer, max_tokens=int(self.rollout_config.response_length))
        group = with_finals(sampled, self._renderer.final_answer_text)
        messages = self._context(group, 0, [float(output.reward_score or 0.0)])
        if messages is None and not self._ours:
            raise ConfigError(
                f"onpolicy.contexts.{self._name}: nothing to show for prompt {group.prompt.id!r}; verl's losses need a "
                "context that every row has, e.g. reference_solution"
            )
        # of a row without a context nobody reads what the teacher says
        privileged = self._privileged(messages) or prompt_ids
        if self._ours:
            both = await asyncio.gather(
                *(m.compute_teacher_logprobs_single(privileged + response_ids) for m in self._asked)
            )
            for name, parts in zip(FIELDS, zip(*both, strict=True), strict=True):
                output.extra_fields[name] = torch.cat(parts, -1)
        else:
            await super()._compute_teacher_logprobs(output, privileged, response_ids, validate, sample_kwargs)
        for name in FIELDS:
            output.extra_fields[name] = realign(output.extra_fields[name], len(privileged), len(prompt_ids))

    def _privileged(self, messages: Sequence[Message] | None) -> list[int] | None:
        """None for a row without a context; under our trainer also for one that is too long, which the trainer drops or refuses."""
        if messages is None:
            return None
        try:
            return list(self._teacher_renderer.prompt_ids(messages, limit=self._longest))
        except PromptTooLong:
            if not self._ours:
                raise
            return None

    @functools.cached_property
    def _asked(self) -> list[Any]:
        """What asks the teacher's servers about the sampled token, and about its most likely ones if those are served.

        The second request says nothing about a sampled token that is not among those.
        """
        given = self.teacher_server_manager
        if not given.distillation_loss_config.loss_settings.use_topk:
            return [given]
        sampled = copy.copy(given)
        sampled.distillation_loss_config = dataclasses.replace(given.distillation_loss_config, loss_mode="k3")
        return [sampled, given]


def realign(rows: Tensor, theirs: int, ours: int) -> Tensor:
    """``[P' + R, K]`` after the teacher's prompt -> ``[P + R, K]`` after the student's; row j is about token j + 1.

    Args:
        theirs: P', tokens of the teacher's prompt
        ours: P, tokens of the student's
    """
    kept = rows[theirs - 1 :]
    return torch.cat([rows.new_zeros(ours - 1, *rows.shape[1:]), kept])


class ServedTeacher(AgentLoopManagerTQ):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.agent_loop_workers_class = ray.remote(ServedTeacherWorker)
        AgentLoopManager.__init__(self, *arguments, **named)
