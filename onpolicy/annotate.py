"""Groups -> examples: rewards, then what the teacher may see, then credit. In this order, because a successful sibling
is known only by its reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from onpolicy.protocols import ContextBuilder
from onpolicy.rendering import PromptTooLong, Renderer
from onpolicy.scoring import Reward, Scored, score_group
from onpolicy.types import Example, Metrics, RolloutGroup


class StaleRollouts(RuntimeError):
    """Rollouts come from other weights than the ones being trained: a weight sync was skipped or failed."""


@dataclass(frozen=True)
class Annotator:
    """Everything that is decided about a rollout before it becomes tensors."""

    renderer: Renderer
    rewards: Sequence[Reward]
    contexts: Mapping[str, ContextBuilder]
    credit: Callable[[Sequence[float]], Sequence[float]]
    max_teacher_prompt_tokens: int
    drop_too_long: bool

    def __call__(self, groups: Sequence[RolloutGroup], *, version: int) -> tuple[list[Example], Metrics]:
        """Examples in order, and what there is to know about them.

        Raises:
            StaleRollouts: a rollout's ``policy_version`` is not ``version``.
            PromptTooLong: a privileged prompt is over the limit and ``rendering.too_long`` is ``refuse``.
        """
        examples: list[Example] = []
        dropped: Counter[str] = Counter()
        for group_id, group in enumerate(groups):
            _refuse_stale(group, version)
            scored = score_group(group, self.rewards, self._final_part)
            totals = [s.total for s in scored]
            for index, advantage in enumerate(self.credit(totals)):
                views = self._views(group, index, totals, dropped)
                examples.append(_example(group, group_id, index, scored[index], advantage, views))
        return examples, _metrics(examples, dropped, self.contexts)

    def _final_part(self, text: str) -> str:
        return self.renderer.split_thinking(text).answer

    def _views(
        self, group: RolloutGroup, index: int, rewards: Sequence[float], dropped: Counter[str]
    ) -> dict[str, tuple[int, ...]]:
        views = {}
        for name, context in self.contexts.items():
            messages = context(group, index, rewards)
            if messages is None:
                continue
            try:
                views[name] = self.renderer.prompt_ids(messages, limit=self.max_teacher_prompt_tokens)
            except PromptTooLong as error:
                if not self.drop_too_long:
                    raise PromptTooLong(
                        error.num_tokens,
                        error.limit,
                        f"contexts.{name}, prompt {group.prompt.id!r} (rendering.max_teacher_prompt_tokens)",
                    ) from error
                dropped[name] += 1
        return views


def _refuse_stale(group: RolloutGroup, version: int) -> None:
    for rollout in group.rollouts:
        if rollout.policy_version != version:
            raise StaleRollouts(
                f"prompt {group.prompt.id!r}: sampled with weights of version {rollout.policy_version}, training is at {version}; "
                "generator.update_weights was skipped or failed"
            )


def _example(
    group: RolloutGroup,
    group_id: int,
    index: int,
    scored: Scored,
    advantage: float,
    views: Mapping[str, tuple[int, ...]],
) -> Example:
    return Example(
        rollout=group.rollouts[index],
        prompt=group.prompt,
        group_id=group_id,
        reward=scored.total,
        reward_parts=scored.parts,
        advantage=advantage,
        teacher_prompt_ids=views,
    )


def _metrics(examples: Sequence[Example], dropped: Counter[str], views: Mapping[str, ContextBuilder]) -> Metrics:
    lengths = [len(e.rollout.completion_ids) for e in examples]
    metrics = {
        "rollout/completion_length/mean": fmean(lengths),
        "rollout/completion_length/max": float(max(lengths)),
        "rollout/truncated": fmean(e.rollout.finish_reason == "length" for e in examples),
        "rollout/aborted": fmean(e.rollout.finish_reason == "abort" for e in examples),
        "rollout/tokens": float(sum(lengths)),
        "reward/mean": fmean(e.reward for e in examples),
        "reward/std": pstdev([e.reward for e in examples]),
        "credit/nonzero": fmean(e.advantage != 0.0 for e in examples),
    }
    for name in dict.fromkeys(part for e in examples for part in e.reward_parts):
        metrics[f"reward/{name}"] = fmean(e.reward_parts[name] for e in examples if name in e.reward_parts)
    for view in views:
        seen = [len(e.teacher_prompt_ids[view]) for e in examples if view in e.teacher_prompt_ids]
        metrics[f"context/{view}/share"] = len(seen) / len(examples)
        metrics[f"context/{view}/tokens"] = fmean(seen) if seen else 0.0
        metrics[f"context/{view}/dropped"] = float(dropped[view])
    return metrics
