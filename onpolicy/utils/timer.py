"""Where the time goes: seconds per phase of a step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class PhaseTimer:
    """Adds up the time spent in named phases; nested phases each count in full."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        """``synchronize`` waits for work still queued on a device, so that a phase is charged with what it started."""
        self._synchronize = synchronize
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self.on_phase: Callable[[str], None] = lambda phase: None
        self.on_progress: Callable[[], None] = lambda: None
        """Called more often than a phase begins: whenever something within one is done."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times what is done inside."""
        self.on_phase(name)
        start = time.perf_counter()
        try:
            yield
            self._synchronize()
        finally:
            self._seconds[name] += time.perf_counter() - start

    def absorb(self, seconds: Mapping[str, float]) -> None:
        """Adds what another timer, in another process, has measured."""
        for name, value in seconds.items():
            self._seconds[name.removeprefix("time/")] += value

    def pop(self) -> dict[str, float]:
        """``time/<phase>`` in seconds since the last call; starts again from zero."""
        seconds = {f"time/{phase}": value for phase, value in self._seconds.items()}
        self._seconds.clear()
        return seconds


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 5 min``, ``4 days 2 h``."""
    if seconds < 90:
        return f"{max(seconds, 1.0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
