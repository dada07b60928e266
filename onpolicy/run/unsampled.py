"""A group of rollouts before any is sampled: what a context does with the problem alone can be seen, what it needs beyond is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.run.loading import BASELINE_COLUMNS
from onpolicy.types import Prompt, Rollout, RolloutGroup

NEEDS_ROLLOUTS, ASKS_THE_MODEL = "needs rollouts", "asks the model"


class NotYet(Exception):
    """What a context needs does not exist before a run; the text says what."""


class _NoRollouts(Sequence[Rollout]):
    """Looking at them is an error."""

    def __getitem__(self, index: Any) -> Any:
        raise NotYet(NEEDS_ROLLOUTS)

    def __len__(self) -> int:
        raise NotYet(NEEDS_ROLLOUTS)

    def __iter__(self) -> Iterator[Any]:
        raise NotYet(NEEDS_ROLLOUTS)


class NoModel:
    """A generator that cannot be asked."""

    def __getattr__(self, name: str) -> Any:
        raise NotYet(ASKS_THE_MODEL)


def unsampled_group(prompt: Prompt) -> RolloutGroup:
    """The group of a problem; whatever looks at its rollouts gets ``NotYet``."""
    return RolloutGroup(prompt=prompt, rollouts=cast(Any, _NoRollouts()))


def with_baseline_columns(prompt: Prompt, resolved: ResolvedConfig) -> Prompt:
    """The prompt with zeros in the columns that ``epistemic.baseline`` will fill, where the config asks for it."""
    if not resolved.config.epistemic.baseline:
        return prompt
    return replace(prompt, fields={**prompt.fields, **dict.fromkeys(BASELINE_COLUMNS, 0.0)})
