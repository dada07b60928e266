"""Validates rollouts of a remote generator, so that a corrupted replica cannot feed the trainer."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from onpolicy.data.rendering import Renderer
from onpolicy.rollout.request import continued_prompt, max_tokens
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling

TOLERANCE = 1e-4
"""Nats by which rounding may put a log-probability above 0."""


class InvalidRollout(ValueError):
    """Rollouts that no working generator returns; the message says what is wrong with them."""


@dataclass(frozen=True)
class RolloutValidator:
    """Checks prompts, token ids, log-probabilities, policy versions and texts."""

    renderer: Renderer
    vocabulary: int
    """Number of token ids."""

    def validate(
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
            groups: what the generator returned
            prompts: of the call, in their order
            sampling: of the call
            oldest: version of the generator's weights when it was called
            newest: their version now

        Raises:
            InvalidRollout: with the first problem found.
        """
        if not isinstance(groups, Sequence) or not all(isinstance(g, RolloutGroup) for g in groups):
            raise InvalidRollout(f"is a {type(groups).__name__}, expected a list of groups")
        if [g.prompt.id for g in groups] != [p.id for p in prompts]:
            raise InvalidRollout(f"is about {[g.prompt.id for g in groups]}, expected {[p.id for p in prompts]}")
        for group, prompt in zip(groups, prompts, strict=True):
            if len(group.rollouts) != sampling.group_size:
                raise InvalidRollout(
                    f"has {len(group.rollouts)} rollouts of prompt {prompt.id!r}, expected {sampling.group_size}"
                )
            prompt_ids = continued_prompt(self.renderer, prompt, sys.maxsize)
            for rollout in group.rollouts:
                if wrong := self._problem(rollout, prompt_ids, max_tokens(prompt, sampling), oldest, newest):
                    raise InvalidRollout(f"has a rollout of prompt {prompt.id!r} {wrong}")

    def _problem(self, r: Rollout, prompt_ids: tuple[int, ...], max_tokens: int, oldest: int, newest: int) -> str:
        """Empty where there is none."""
        if r.prompt_ids != prompt_ids:
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
            return f"of weights {r.policy_version}, expected {oldest} to {newest}"
        if r.text != self.renderer.completion_text(r.sampled_ids):
            return "whose text is not that of its tokens"
        return ""
