"""An optimizer update in windows of micro-batches: what teachers say about it exists for one window at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.teacher import TeacherHidden
from onpolicy.types import Example


@dataclass(frozen=True)
class MicroBatch:
    """One pass of the student."""

    indices: tuple[int, ...]
    """Of this rank's examples; the filler's where ``idle``."""
    window: int
    idle: bool = False
    """Whether it only takes part in the collectives of a rank that has more micro-batches in this window."""


def in_step(windows: Sequence[Sequence[Sequence[int]]], collectives: SingleProcess, *, filler: int) -> list[MicroBatch]:
    """The micro-batches of one update in the order in which they run: on each rank as many windows, and as many passes in each.

    Ranks issue the same collectives in the same order, whether a pass is the student's or a teacher's.

    Args:
        windows: this rank's examples by micro-batch and by window
        collectives: of the ranks
        filler: index of the example that an idle pass reads
    """
    ranks = collectives.all_gather([len(window) for window in windows])
    found = []
    for number, passes in enumerate(zip_longest(*ranks, fillvalue=0)):
        own = windows[number] if number < len(windows) else []
        found += [MicroBatch(tuple(indices), number) for indices in own]
        found += [MicroBatch((filler,), number, idle=True)] * (max(passes) - len(own))
    return found


class TeacherWindows:
    """The hidden states of teacher and reference model, read window by window, just before the student's first pass over each.

    Those of the last window stay until another is asked for. Where the student reads an update twice (``update_totals``), the teachers
    therefore read it twice too, unless it is one window: their states are too large to keep, and per-token numbers are not enough for a
    comparison that is differentiated over the vocabulary.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        cut: Sequence[MicroBatch],
        score: Callable[[Sequence[Example]], Sequence[TeacherHidden]],
    ) -> None:
        """
        Args:
            examples: this rank's, and the filler
            cut: the micro-batches
            score: examples -> what teachers say about each, in order
        """
        self._examples, self._cut, self._score = examples, cut, score
        self._window, self._hidden = -1, dict[int, TeacherHidden]()

    def hidden(self, batch: MicroBatch) -> list[TeacherHidden]:
        """By rollout of the micro-batch, in order."""
        if batch.window != self._window:
            self._hidden = {}  # before those of the next window are made
            own = sorted({i for b in self._cut if b.window == batch.window for i in b.indices})
            self._hidden = dict(zip(own, self._score([self._examples[i] for i in own]), strict=True))
            self._window = batch.window
        return [self._hidden[i] for i in batch.indices]
