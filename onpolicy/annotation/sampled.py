"""Whether what a plug-in shows depends on what was sampled, whose length nobody knows before the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import GeneratorType
from typing import Any, cast

from onpolicy.types import Rollout, ScoredGroup


class _Watched(Sequence[Rollout]):
    """Rollouts that know whether somebody has looked at them."""

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self._rollouts, self.seen = rollouts, False

    def __getitem__(self, index: Any) -> Any:
        self.seen = True
        return self._rollouts[index]

    def __len__(self) -> int:
        return len(self._rollouts)


def reads_sampled(build: Callable[..., Any], scored: ScoredGroup, index: int, *, replies: bool = True) -> bool:
    """Whether what a plug-in shows or marks for a rollout depends on what was sampled.

    Args:
        build: a context or a span finder
        scored: the rollout's group
        index: of the rollout
        replies: whether the answer to a request counts too, the model's or another problem, not the rollouts alone
    """
    rollouts = _Watched(scored.group.rollouts)
    shown = build(replace(scored.group, rollouts=cast(Any, rollouts)), index, scored.scores)
    if isinstance(shown, GeneratorType):
        request = next(shown, None)
        shown.close()
        return rollouts.seen or (replies and request is not None)
    return rollouts.seen
