"""One soak: the run, the harm, and what is seen meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from benchmarks.soak import checks, work
from benchmarks.soak.chaos import KINDS, ROLES_ONLY, Harm, shuffled
from benchmarks.soak.checks import Check, Sample
from benchmarks.soak.driver import Driver
from benchmarks.soak.work import Work
from onpolicy.run.checkpoint import Checkpoints

GLANCE, SAMPLE_EVERY = 0.1, 2.0
TOO_MANY = 6
"""Faults without a new step between them, after which the next one waits for a step."""
STUCK = 600.0
"""Seconds without a new step after which the run counts as stuck."""
HOPELESS = 3
"""Times in a row that a driver may end by itself before its first new step."""


@dataclass
class Fault:
    number: int
    kind: str
    harm: Harm
    at: float
    step: int
    back_after: float | None = None
    """Seconds until the next step that nobody had done before."""


@dataclass
class Seen:
    """What a soak came to."""

    faults: list[Fault] = field(default_factory=list)
    new_steps: list[tuple[float, int]] = field(default_factory=list)
    """When each step was logged for the first time."""
    samples: list[Sample] = field(default_factory=list)
    orphans: Counter[str] = field(default_factory=Counter)
    """What dead drivers left behind, by role."""
    ends: list[str] = field(default_factory=list)
    """What drivers said that ended by themselves."""
    resumed_torn: list[int] = field(default_factory=list)
    """Steps of broken checkpoints that were taken for whole."""
    finished: bool = False
    seconds: float = 0.0

    @property
    def typical_step(self) -> float:
        """Seconds, median."""
        times = [at for at, _ in self.new_steps]
        return median([b - a for a, b in itertools.pairwise(times)] or [0.0])

    @property
    def lost(self) -> float:
        """Seconds that the run took longer than so many typical steps."""
        times = [at for at, _ in self.new_steps]
        return times[-1] - times[0] - (len(times) - 1) * self.typical_step if times else 0.0


class Soak:
    """Trains and does harm until the run is through."""

    def __init__(
        self,
        requested: Work,
        folder: Path,
        *,
        seconds: float,
        kinds: Sequence[str],
        say: Callable[[str], None],
        limit: int | None = None,
    ) -> None:
        """
        Args:
            requested: what is trained
            folder: for the run and everything around it
            seconds: between two faults, on average
            kinds: of ``chaos.KINDS``
            say: takes a line for each fault, and some on the way
            limit: faults at most
        """
        self.work, self.folder, self.seconds, self.say, self.limit = requested, folder, seconds, say, limit
        self.seen = Seen()
        self._temporary = Path(tempfile.mkdtemp(prefix="soak"))
        self.driver = Driver(work.prepare(requested, folder), folder / "run", folder / "driver.log", self._temporary)
        self._kinds, self._kind = shuffled(list(kinds), requested.seed), ""
        self._draw = random.Random(f"{requested.seed}/times")
        self._begun = time.monotonic()
        self._due = self._sampled = self._moved_at = self._begun
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._torn: int | None = None
        self._since_step = self._driver_harmed_at = self._by_itself = 0

    @property
    def step(self) -> int:
        """The highest that was logged."""
        return self.seen.new_steps[-1][1] if self.seen.new_steps else 0

    def __call__(self) -> Seen:
        try:
            self._start()
            while self._goes_on():
                time.sleep(GLANCE)
        finally:
            for _, undo in self._undo:
                undo()
            self.driver.close()
            shutil.rmtree(self._temporary, ignore_errors=True)
        self.seen.seconds = time.monotonic() - self._begun
        return self.seen

    def _start(self) -> None:
        self.driver.start()
        self._moved_at = time.monotonic()

    def _goes_on(self) -> bool:
        now = time.monotonic()
        self._look(now)
        for at, undo in [u for u in self._undo if u[0] <= now]:
            undo()
            self._undo.remove((at, undo))
        if (status := self.driver.ended()) is not None:
            return self._after(status)
        if now - self._moved_at > STUCK:
            self.seen.ends.append(f"no new step for {STUCK:g} s")
            return False
        if now - self._sampled >= SAMPLE_EVERY:
            self._sampled = now
            self._sample(now)
        if self.step and now >= self._due:
            self._harm(now)
        return True

    def _look(self, now: float) -> None:
        """At the run's log, for steps that nobody had done before."""
        step = last_step(self.driver.run / "metrics.jsonl")
        if step <= self.step:
            return
        if not self.seen.new_steps:
            self._due = now + self._pause()
        for fault in self.seen.faults:
            if fault.back_after is None:
                fault.back_after = now - fault.at
        tenth = max(1, self.work.steps // 10)
        if step // tenth > self.step // tenth:
            self.say(f"step {step} of {self.work.steps}")
        self.seen.new_steps.append((now, step))
        self._moved_at, self._since_step, self._by_itself = now, 0, 0
        self._check_resumed()

    def _check_resumed(self) -> None:
        if self._torn is not None and self.driver.resumed_at == self._torn:
            self.seen.resumed_torn.append(self._torn)
        self._torn = None

    def _after(self, status: int) -> bool:
        """A scheduler starts it again."""
        self.seen.orphans += self.driver.orphans()
        self._undo.clear()
        if status == 0:
            self.seen.finished = True
            return False
        if not self._killed():
            self._by_itself += 1
            last = next((line for line in reversed(self.driver.tail) if line.strip()), "")
            self.seen.ends.append(f"at step {self.step}, status {status}: {last.strip()[:300]}")
            self.say(f"[red]the driver ended by itself[/red] {self.seen.ends[-1]}")
            if self._by_itself > HOPELESS:
                return False
        self._start()
        return True

    def _killed(self) -> bool:
        """Whether the process that ended was ended by us."""
        fault = self.seen.faults[-1] if self.seen.faults else None
        return fault is not None and "SIGKILL" in fault.harm.detail and fault.harm.target == "driver" and (
            self.driver.ended() == -9
        )  # fmt: skip

    def _harm(self, now: float) -> None:
        if self._since_step >= TOO_MANY or (self.limit is not None and len(self.seen.faults) >= self.limit):
            return
        self._kind = self._kind or next(self._kinds)
        if self._kind not in ROLES_ONLY and (self._undo or self.step <= self._driver_harmed_at):
            return  # what is done to a driver comes one at a time, with a new step in between
        number = len(self.seen.faults) + 1
        with contextlib.suppress(OSError):
            harm = KINDS[self._kind][1](self.driver, random.Random(f"{self.work.seed}/{number}"), self.work.patience)
            if harm is None:
                return
            self.seen.faults.append(Fault(number, self._kind, harm, now, self.step))
            self._note(self.seen.faults[-1], now)

    def _note(self, fault: Fault, now: float) -> None:
        harm, self._kind = fault.harm, ""
        self.say(
            f"{now - self._begun:6.0f} s  step {fault.step:>4}  fault {fault.number:>3}  [bold]{fault.kind}[/bold] "
            f"{harm.target}: {harm.detail}"
        )
        if harm.undo:
            self._undo.append((now + harm.after, harm.undo))
        if fault.kind not in ROLES_ONLY:
            self._driver_harmed_at = self.step
        self._torn = harm.torn if harm.torn is not None else self._torn
        self._since_step += 1
        self._due = now + self._pause()

    def _pause(self) -> float:
        return self._draw.uniform(0.5, 1.5) * self.seconds

    def _sample(self, now: float) -> None:
        for member in self.driver.members():
            with contextlib.suppress(Exception):  # it may end at any time
                process = member.process
                memory, handles = process.memory_full_info().uss / 2**20, process.num_fds()
                role = member.role if member.role != "ray" else process.name()
                self.seen.samples.append(Sample(now, role, member.life, self.step, memory, handles))
                if member.role == "driver":
                    store = psutil.virtual_memory().shared / 2**20
                    self.seen.samples.append(Sample(now, checks.STORE, member.life, self.step, store, 0))

    def results(self) -> list[Check]:
        """What was to be shown."""
        run, seen, requested = self.driver.run, self.seen, self.work
        rows = checks.rows_of(run / "metrics.jsonl")
        ids = [work.row(i)["id"] for i in range(requested.problems)]
        last = Checkpoints(run / "checkpoints", keep_last=1, best=None).latest()
        left = [path.name for path in (run / "checkpoints").glob(".*")]
        return [
            Check("the run came to its end", seen.finished, f"{self.driver.starts - 1} restarts of the driver"),
            Check("the driver ended only when it was killed", not seen.ends, "; ".join(seen.ends[:3])),
            checks.steps_once(rows, requested.steps),
            checks.prompts_once(
                checks.rows_of(run / "samples.jsonl"), ids,
                steps=requested.steps, per_step=work.PROMPTS_PER_STEP, group=work.GROUP,
            ),
            checks.staleness_bounded(rows, work.STALENESS),
            Check(
                "no broken checkpoint was taken for whole", not seen.resumed_torn, ", ".join(map(str, seen.resumed_torn))
            ),
            Check(
                "the last checkpoint is whole, and none is half written",
                last is not None and last.step == requested.steps and not left,
                f"step {last.step if last else None}; {', '.join(left) or 'nothing'} left behind",
            ),
            *checks.nothing_grows(seen.samples),
        ]  # fmt: skip


def last_step(path: Path) -> int:
    """Of a log that is being written; 0 where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**16))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return 0
