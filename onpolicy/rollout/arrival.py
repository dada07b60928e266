"""Rollouts as they end, in any order -> groups, each told of as soon as it is whole."""

from __future__ import annotations

from collections.abc import Sequence

from onpolicy.protocols import OnGroup
from onpolicy.types import Prompt, Rollout, RolloutGroup


class Arrivals:
    """The rollouts of one call of ``generate``."""

    def __init__(self, prompts: Sequence[Prompt], size: int, on_group: OnGroup) -> None:
        """
        Args:
            prompts: of the call
            size: rollouts of each
            on_group: told of each group
        """
        self._prompts, self._size, self._on_group = prompts, size, on_group
        self._rollouts: list[dict[int, Rollout]] = [{} for _ in prompts]
        self._groups: dict[int, RolloutGroup] = {}

    def add(self, number: int, rollout: Rollout) -> None:
        """Rollout ``number % size`` of prompt ``number // size``."""
        place, index = divmod(number, self._size)
        own = self._rollouts[place]
        own[index] = rollout
        if len(own) == self._size:
            group = RolloutGroup(prompt=self._prompts[place], rollouts=tuple(own[j] for j in range(self._size)))
            self._groups[place] = group
            self._on_group(place, group)

    def groups(self) -> list[RolloutGroup]:
        """All of them, in the order of the prompts, once all are whole."""
        return [self._groups[place] for place in range(len(self._prompts))]
