"""``onpolicy.rewards`` in verl's reward workers, for training and validation alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from onpolicy.annotation.build import build_rewards
from onpolicy.annotation.scoring import combine, evaluate_rewards, reward_inputs
from onpolicy.integrations.verl.rows import FEEDBACK, rollout_group
from onpolicy.integrations.verl.scoring import sees_siblings
from onpolicy.integrations.verl.settings import method
from onpolicy.models import student_renderer


class OnpolicyRewardManager(RewardManagerBase):  # type: ignore[misc]
    """One trajectory at a time: every reward by its name, and their weighted sum.

    The trainer adds rewards that compare siblings, and applies weight schedules and bonuses again.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: Any = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        resolved = method(config)
        self._rewards = [r for r in build_rewards(resolved) if not sees_siblings(r.function)]
        self._right = resolved.correctness_name
        self._renderer = student_renderer(resolved, tokenizer, resolved.config.model.path)
        self._max_tokens = resolved.generator.settings.max_tokens

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Scores one trajectory, in verl's format, which wants a number of each reward: NaN for None. Of several sequences the last counts.

        Raises:
            onpolicy.rewards.base.RewardError: a reward raised or returned no number.
        """
        item = data[len(data) - 1]
        return await self.loop.run_in_executor(None, self._scored, row_of(item))

    def _scored(self, row: Mapping[str, Any]) -> dict[str, Any]:
        group = rollout_group([row], self._renderer, max_tokens=self._max_tokens)
        inputs = reward_inputs(group, self._renderer.final_answer_text)
        (found,) = evaluate_rewards({r.name: r.function for r in self._rewards}, inputs)
        (scored,) = combine([found.breakdown], self._rewards, correctness=self._right)
        numbers = {r.name: found.breakdown.get(r.name, math.nan) for r in self._rewards}
        return {
            "reward_score": scored.total,
            "reward_extra_info": {**numbers, FEEDBACK: found.feedback or ""},
        }


def row_of(item: Any) -> dict[str, Any]:
    """verl pads a trajectory for the reward on the right of both halves."""
    real = item.batch["attention_mask"].bool()
    width = item.batch["prompts"].shape[-1]
    return {
        **item.non_tensor_batch,
        "prompts": item.batch["prompts"][real[:width]],
        "responses": item.batch["responses"][real[width:]],
    }
