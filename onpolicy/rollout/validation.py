"""Whether an answer can be what was asked for: the last line against a replica that is broken and does not know it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from onpolicy.data.rendering import Renderer
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling

TOLERANCE = 1e-4
"""Nats by which rounding may put a log-probability above 0."""


class InvalidRollout(ValueError):
    """An answer that no working generator gives; says what is wrong."""


@dataclass(frozen=True)
class RolloutValidator:
    """What an answer is held to."""

    renderer: Renderer
    vocabulary: int
    """Token ids are below it."""

    def __call__(
        self,
        groups: Sequence[RolloutGroup],
        prompts: Sequence[Prompt],
        *,
        sampling: Sampling,
        oldest: int,
        newest: int,
    ) -> None:
        """
        Args:
            groups: the answer
            prompts: what was asked, in this order
            sampling: how
            oldest: version of the weights when it was asked
            newest: and now

        Raises:
            InvalidRollout: it cannot be right.
        """
        if not isinstance(groups, Sequence) or not all(isinstance(g, RolloutGroup) for g in groups):
            raise InvalidRollout(f"is a {type(groups).__name__}, wanted a list of groups")
        if [g.prompt.id for g in groups] != [p.id for p in prompts]:
            raise InvalidRollout(f"is about {[g.prompt.id for g in groups]}, wanted {[p.id for p in prompts]}")
        for group, prompt in zip(groups, prompts, strict=True):
            if len(group.rollouts) != sampling.group_size:
                raise InvalidRollout(
                    f"has {len(group.rollouts)} rollouts of prompt {prompt.id!r}, wanted {sampling.group_size}"
                )
            read = (*self.renderer.prompt_ids(prompt.messages, limit=sys.maxsize), *prompt.completion_prefix_ids)
            for rollout in group.rollouts:
                if wrong := self._wrong(rollout, read, sampling.max_tokens, oldest, newest):
                    raise InvalidRollout(f"has a rollout of prompt {prompt.id!r} {wrong}")

    def _wrong(self, r: Rollout, read: tuple[int, ...], max_tokens: int, oldest: int, newest: int) -> str:
        if r.prompt_ids != read:
            return "to another prompt"
        if len(r.completion_ids) > max_tokens:
            return f"of {len(r.completion_ids)} tokens, max_tokens is {max_tokens}"
        if len(r.rollout_logprobs) != len(r.completion_ids):
            return f"of {len(r.completion_ids)} tokens and {len(r.rollout_logprobs)} log-probs"
        if not all(0 <= token < self.vocabulary for token in r.completion_ids):
            return f"with a token outside the vocabulary of {self.vocabulary}"
        if not all(math.isfinite(x) and x <= TOLERANCE for x in r.rollout_logprobs):
            return "with a log-prob that is none"
        if not oldest <= r.policy_version <= newest:
            return f"of weights {r.policy_version}, wanted {oldest} to {newest}"
        if r.text != self.renderer.completion_text(r.sampled_ids):
            return "whose text is not that of its tokens"
        return ""
