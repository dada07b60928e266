"""``onpolicy.rewards`` in verl's reward workers, for training and validation alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from onpolicy.annotation.build import build_rewards
from onpolicy.annotation.scoring import combine, evaluate_rewards, reward_inputs
from onpolicy.integrations.verl.conversation_rows import segment_of
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
        """Scores one trajectory, in verl's format, which wants a number of each reward: NaN for None. Of several sequences the last
        counts, unless they are the segments of a conversation.

        Raises:
            onpolicy.rewards.base.RewardError: a reward raised or returned no number.
        """
        rows = [row_of(data[i]) for i in range(len(data))]
        own = rows if segment_of(rows[-1]) is not None else rows[-1:]
        return await self.loop.run_in_executor(None, self._scored, own)

    def _scored(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        group = rollout_group(rows, self._renderer, max_tokens=self._max_tokens)
        (rollout,) = group.rollouts
        measured: dict[str, Any] = {}
        if rollout.outcome is not None:
            measured = {"environment/failed": float(rollout.failed), "environment/turns": float(rollout.outcome.turns)}
        if rollout.failed:  # what it has not is in none of verl's means
            parts = {**dict.fromkeys(r.name for r in self._rewards), FEEDBACK: ""}
            return {"reward_score": 0.0, "reward_extra_info": {**parts, **measured}}
        inputs = reward_inputs(group, self._renderer.final_answer_text)
        (found,) = evaluate_rewards({r.name: r.function for r in self._rewards}, inputs)
        (scored,) = combine([found.breakdown], self._rewards, correctness=self._right)
        numbers = {r.name: found.breakdown.get(r.name, math.nan) for r in self._rewards}
        return {
            "reward_score": scored.total,
            "reward_extra_info": {**numbers, FEEDBACK: found.feedback or "", **measured},
        }


def row_of(item: Any) -> dict[str, Any]:
    """verl pads a trajectory for the reward on the right of both halves; where it has several sequences, it says how long each is."""
    columns, prompts, responses = dict(item.non_tensor_batch), item.batch["prompts"], item.batch["responses"]
    if "prompt_len" in columns:
        asked, said = int(columns["prompt_len"]), int(columns["response_len"])
    else:
        real = item.batch["attention_mask"].bool()
        asked = int(real[: len(prompts)].sum())
        said = int(real[len(prompts) :].sum())
    told = columns.pop("tool_extra_fields", None)
    return {
        **columns,
        **({} if told is None else {"extra_fields": told}),
        "prompts": prompts[:asked],
        "responses": responses[:said],
    }
