"""Numbers that no run can mean, declared once: beside a setting's default, or in the annotation of a plug-in's option.

lora_rank: Annotated[int, Bounds(least=0)] = 0
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from onpolicy.config.schedules import Coefficient


@runtime_checkable
class Rule(Protocol):
    """What an option's value has to keep to besides its type; stands in the option's annotation."""

    def problems(self, key: str, value: Any) -> Iterator[str]:
        """What is wrong with a value of the right type, each with the key."""
        ...


@dataclass(frozen=True)
class Bounds:
    """What a number, or each number of a list, has to keep to; it is finite unless ``infinite`` says that infinity has a meaning."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    infinite: bool = False

    def hold(self, number: float) -> bool:
        """Whether the number keeps to them; NaN keeps to none."""
        return (
            (isinstance(number, int) or math.isfinite(number) or (self.infinite and not math.isnan(number)))
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        said = [] if self.least is None else ["0 or more" if self.least == 0 else f"at least {self.least:g}"]
        said += [] if self.above is None else [f"above {self.above:g}"]
        said += [] if self.most is None else [f"at most {self.most:g}"]
        said += [] if self.below is None else [f"below {self.below:g}"]
        return (" and ".join(said) or "a finite number") + (", or .inf" if self.infinite else "")

    def problems(self, key: str, value: Any) -> Iterator[str]:
        """What is wrong with a number, with those of a list, or with the first of a schedule; anything else is not looked at."""
        for i, item in enumerate(value if isinstance(value, list) else ()):
            yield from self.problems(f"{key}[{i}]", item)
        number = float(value) if isinstance(value, Coefficient) else value
        if isinstance(number, int | float) and not self.hold(number):
            finite = "a finite number, " if number in (math.inf, -math.inf) and str(self) != str(FINITE) else ""
            yield f"{key}: got {number}, expected {finite}{self}."


FINITE, NOT_NEGATIVE, POSITIVE, AT_LEAST_ONE = Bounds(), Bounds(least=0), Bounds(above=0), Bounds(least=1)


def out_of_bounds(settings: Any, prefix: str) -> Iterator[str]:
    """A problem for each number of a section's settings, nested ones too, that lies outside of what its field declares."""
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        bounds = field.metadata.get("bounds")
        if isinstance(bounds, Bounds):
            yield from bounds.problems(key, value)
        elif isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory):
            yield from out_of_bounds(value, f"{key}.")
