"""What is read off the texts of rollouts before anything is decided about them: facts for telemetry, and the tokens of each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from onpolicy.data.alignment import TokenAlignment
from onpolicy.data.decoder import Decoder
from onpolicy.epistemic.telemetry import TextTelemetry
from onpolicy.epistemic.text_facts import TextFacts
from onpolicy.types import RolloutGroup


@dataclass(frozen=True)
class ReadText:
    """One rollout's text. Small beside it, and can be pickled."""

    facts: TextFacts | None
    """For telemetry; None without any."""
    classes: Mapping[str, Sequence[tuple[int, int]]]
    """Class -> its sampled tokens, as ranges ``(first, stop)``."""


@dataclass(frozen=True)
class TextReader:
    """Needs neither model nor scores. Can be pickled if its parts can."""

    classes: Mapping[str, Callable[..., Any]]
    """Span finders that ask nothing and read no rewards."""
    telemetry: TextTelemetry | None
    decoder: Decoder

    def read(self, group: RolloutGroup, index: int) -> ReadText:
        """Reads one rollout: the classes and then the facts, which look for the same lexicons."""
        rollout = group.rollouts[index]
        classes = {
            name: self.alignment.ranges(rollout.sampled_ids, find(group, index, ()), rollout.text)
            for name, find in self.classes.items()
        }
        return ReadText(self.telemetry.facts(rollout, group.prompt) if self.telemetry else None, classes)

    @cached_property
    def alignment(self) -> TokenAlignment:
        return TokenAlignment(self.decoder)
