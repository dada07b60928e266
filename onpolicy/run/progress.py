"""Where a run stands and how long it will take, in one line: what is said every now and then where no bar can be drawn."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from onpolicy.utils.timer import in_words

PHASES = {
    "load": "loading the model",
    "baseline": "measuring the reference model",
    "check": "checking before the first step",
    "step": "beginning",
    "generate": "sampling from the student",
    "wait": "waiting for rollouts",
    "reward": "scoring answers",
    "annotate": "choosing what the teacher sees",
    "score": "the teacher reads along",
    "update": "learning",
    "sync": "handing over the weights",
    "evaluate": "evaluating",
    "save": "saving",
}
SILENCE_S = 20.0
"""Seconds after which something is said."""
RECENT = 8
"""Steps whose mean duration the estimate takes."""


@dataclass
class RunProgress:
    """The step, the phase, how much of the phase is done, and how long the rest will take."""

    steps: int
    """Of the run; 0: it has no steps."""
    most_tokens: int = 0
    """Of a rollout; 0: not known."""
    every: Mapping[str, int] = field(default_factory=dict)
    """Phase that few steps have -> it comes every so many steps, and after the last."""
    now: Callable[[], float] = time.monotonic
    step: int = 0
    """The step under way; 0 before the first."""
    done: int = 0
    total: int = 0
    """Rollouts of the phase, finished and expected; 0: it has none."""
    _phase: str = "load"
    _tokens: int = 0
    """Sampled in this phase."""
    _call: int = 0
    """Sampled in the generator's call under way."""
    _peak: float = 0.0
    """Tokens per second since the phase began, where that was highest: before most rollouts had ended."""
    _spent: dict[str, float] = field(default_factory=dict)
    """Phases of this step that are over -> seconds, in the order in which they began."""
    _latest: defaultdict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=RECENT)))
    """Phase -> seconds in the latest steps that had it."""
    _order: tuple[str, ...] = ()
    """Phases of the latest whole step; empty before there is one."""

    def __post_init__(self) -> None:
        self._phase_began = self._counted = self.now()

    def start_step(self, step: int) -> None:
        self._end_phase()
        if self.step:
            self._order = tuple(self._spent)
        for phase, seconds in self._spent.items():
            self._latest[phase].append(seconds)
        self._spent.clear()
        self.step, self._phase = step, "step"

    def phase(self, name: str) -> None:
        self._end_phase()
        self._phase = name
        self.done = self.total = self._tokens = self._call = 0
        self._peak = 0.0

    def count(self, done: int, total: int, tokens: int) -> None:
        """What the generator reports: rollouts finished and expected, and the tokens that its call has sampled so far."""
        self._tokens += tokens - self._call if tokens >= self._call else tokens  # fewer: another call has begun
        self.done, self.total, self._call, self._counted = done, total, tokens, self.now()
        if seconds := self._counted - self._phase_began:
            self._peak = max(self._peak, self._tokens / seconds)
        if self._phase == "check" and done == total and not self._latest["generate"]:  # it samples as a step does
            self._latest["generate"].append(seconds)

    def doing(self) -> str:
        """The phase, and how far it is."""
        text = PHASES.get(self._phase, self._phase)
        if self.total:
            text += f" {self.done}/{self.total}"
        sampling, seconds = self.done < self.total, self._counted - self._phase_began
        return text + (f" at {self._tokens / seconds:.0f} tokens/s" if sampling and self._tokens and seconds else "")

    def left(self) -> str:
        """How long it will take; empty where nothing is known yet.

        Before anything is sampled as in a step: the rest of the phase. Until the first step is over: what its phases so far take in
        all steps, which is a lower bound. Later: each phase takes as long as in the latest steps that had it.
        """
        words, rest = ("about", self._rest(self._phase)) if self._latest[self._phase] else self._rest_of_sampling()
        sampled = self._latest["generate"]
        if not self.step and self._phase != "check" and not sampled:
            return f"{words} {in_words(rest)} left of this" if rest else ""
        ahead = self.steps - self.step
        rare = sum(self._mean(phase) * self._times(phase) for phase in self.every)
        if not self._order:
            so_far = sum(seconds for phase, seconds in self._seconds().items() if phase not in self.every)
            each = so_far + rest if self.step else self._mean("generate") or self._seconds()["check"] + rest
            if words == "at most" and not sampled:  # too few rollouts have ended to say more
                return f"at most {in_words(rest + ahead * each)} of sampling left"
            known = rest + ahead * each + rare if rest or self.step or sampled else 0.0
            return f"over {in_words(known)} left" if known else ""
        usual = [phase for phase in self._order if phase not in self.every]
        left = sum(map(self._rest, self._to_come(usual))) + ahead * sum(map(self._mean, usual)) + rare
        return f"about {in_words(left)} left" if left else ""  # 0: a last step that takes longer than the others

    def line(self) -> str:
        step = f"step {self.step}/{self.steps}: " if self.step else ""
        return step + ", ".join(filter(None, (self.doing(), self.left())))

    def _end_phase(self) -> None:
        self._spent = self._seconds()
        self._phase_began = self._counted = self.now()

    def _seconds(self) -> dict[str, float]:
        """Phase of this step -> seconds so far."""
        return self._spent | {self._phase: self._spent.get(self._phase, 0.0) + self.now() - self._phase_began}

    def _mean(self, phase: str) -> float:
        latest = self._latest[phase]
        return sum(latest) / len(latest) if latest else 0.0

    def _rest(self, phase: str) -> float:
        """Seconds that a phase still needs in this step, if it takes as long as usual."""
        return max(self._mean(phase) - self._seconds().get(phase, 0.0), 0.0)

    def _to_come(self, usual: Sequence[str]) -> Sequence[str]:
        """The phases of this step that are not over."""
        if self._phase in usual:
            return usual[usual.index(self._phase) :]
        return () if self._phase in self.every else [phase for phase in usual if phase not in self._spent]

    def _times(self, phase: str) -> float:
        """How often a phase that few steps have will come; the one under way counts with what is left of it."""
        every, last = self.every[phase] or self.steps, self.steps
        due = last // every - self.step // every + (self.step < last and last % every > 0)
        now = self.step == last or self.step % every == 0
        if phase == self._phase:
            return due + self._rest(phase) / (self._mean(phase) or 1.0)
        return due + (1 if now and phase not in self._spent else 0)

    def _rest_of_sampling(self) -> tuple[str, float]:
        """Seconds until all rollouts have ended, and how sure that is: most end late, and the more have ended the slower the rest comes.

        Until half of them have ended, as if all were as long as can be; then by how many have ended.
        """
        so_far, waited = self._counted - self._phase_began, self.now() - self._counted
        if not self._tokens or not so_far or self.done >= self.total:
            return "about", 0.0
        most = self.total * self.most_tokens / self._peak - so_far
        likely = so_far * self.total / self.done - so_far if self.done else 0.0
        if self.most_tokens and (2 * self.done < self.total or most < likely):
            return "at most", max(most - waited, 0.0)
        return "about", max(likely - waited, 0.0)


class Heartbeat:
    """Says a line whenever nothing has been said for a while."""

    def __init__(self, say: Callable[[], None], now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            say: says something
            now: the clock
        """
        self._say, self._now = say, now
        self._heard = now()

    def hear(self) -> None:
        """Something has been said."""
        self._heard = self._now()

    def beat(self) -> float:
        """Says something if it is time; returns the seconds until it may be time again."""
        if self._now() - self._heard >= SILENCE_S:
            self._say()
            self.hear()
        return SILENCE_S - (self._now() - self._heard)

    @contextmanager
    def running(self) -> Iterator[None]:
        """On a thread of its own, until the block ends."""
        ended = threading.Event()

        def beats() -> None:
            while not ended.wait(self.beat()):
                pass

        thread = threading.Thread(target=beats, name="heartbeat", daemon=True)
        self.hear()
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
