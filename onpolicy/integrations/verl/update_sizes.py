"""How many updates a step of verl's has where its rollouts have several rows.

verl fills a step up to whole mini-batches of so many rows as prompts have rollouts: rows of further segments would make a second update of
what is one. Here a step has as many updates as its prompts make, as in the embedded trainer, each with an equal part of all rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.integrations.verl.group_order import StepLayout, step_layout

UPDATES = "onpolicy_updates"
"""Key of a batch's extra info: in how many updates it is trained."""


class UpdatesOfPrompts:
    """For any of verl's trainers of generation V1, before them; as they are where rollouts have one turn."""

    config: Any
    resolved: ResolvedConfig
    _updates = 1
    """Of the batch at hand."""

    def _balance_batch(self, batch: Any, *arguments: Any, **named: Any) -> Any:
        if self.resolved.environment is not None:
            prompts = {key.rsplit("_", 2)[0] for key in batch.keys}
            self._updates = max(1, round(len(prompts) / self.config.actor_rollout_ref.actor.ppo_mini_batch_size))
        return super()._balance_batch(batch, *arguments, **named)  # type: ignore[misc]

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        if self.resolved.environment is not None:
            batch.extra_info[UPDATES] = self._updates
        return super()._update_actor(batch, metrics=metrics)  # type: ignore[misc]

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        if self.resolved.environment is None:
            multiple: int = super()._get_required_batch_multiple(dp_size)  # type: ignore[misc]
            return multiple
        return dp_size * self._updates

    def _layout(self, rows: int) -> StepLayout:
        """How verl takes a batch's rows."""
        layout = step_layout(self.config, rows)
        return layout if self.resolved.environment is None else replace(layout, updates=self._updates)

    def _is_one_update(self, rows: int) -> bool:
        """Whether a batch is trained once."""
        actor = self.config.actor_rollout_ref.actor
        if self.resolved.environment is not None:
            return bool(self._updates * actor.ppo_epochs == 1)
        return bool(
            rows <= actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n and actor.ppo_epochs == 1
        )


def cut_into_updates(data: TensorDict) -> None:
    """In a worker: tells verl of the number of updates in place of their size, where the driver has set it."""
    updates = tu.pop(data, UPDATES, default=None)
    if updates is not None:
        tu.pop(data, "mini_batch_size", default=None)
        tu.assign_non_tensor(data, num_mini_batch=updates)
