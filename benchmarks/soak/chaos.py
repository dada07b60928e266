"""The harm: what can be done to a run from outside, without privileges."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil

from benchmarks.soak.driver import Driver, Member
from onpolicy.run.checkpoint import Checkpoints

QUOTA = 4096
"""Bytes that a file may have while the disk is full."""


@dataclass(frozen=True)
class Harm:
    """What was done."""

    target: str
    detail: str = ""
    undo: Callable[[], None] | None = None
    after: float = 0.0
    """Seconds after which it is undone."""
    torn: int | None = None
    """Step of a checkpoint that is broken now."""


Kind = Callable[[Driver, random.Random, float], Harm | None]
"""(run, random, patience of its roles) -> what was done; None: it cannot be done now."""


def kill(driver: Driver, draw: random.Random, patience: float) -> Harm | None:
    """SIGKILL to a process of a role."""
    return _signal_a_role(driver, draw, signal.SIGKILL)


def stop(driver: Driver, draw: random.Random, patience: float) -> Harm | None:
    """SIGSTOP to a process of a role, for good: it hangs."""
    return _signal_a_role(driver, draw, signal.SIGSTOP)


def driver_killed(driver: Driver, draw: random.Random, patience: float) -> Harm | None:
    """SIGKILL to the driver."""
    driver.members()  # whom it leaves behind
    driver.kill()
    return Harm("driver", "SIGKILL")


def driver_frozen(driver: Driver, draw: random.Random, patience: float) -> Harm | None:
    """SIGSTOP to the driver, and SIGCONT when its roles could seem to hang."""
    driver.send(signal.SIGSTOP)
    seconds = draw.uniform(1, 1.5 * patience)
    return Harm("driver", f"SIGSTOP for {seconds:.0f} s", lambda: driver.send(signal.SIGCONT), seconds)


def torn(driver: Driver, draw: random.Random, patience: float) -> Harm | None:
    """A file of the newest checkpoint loses its second half, and the driver dies."""
    with _killed_at_last(driver) as checkpoints:
        newest = checkpoints.latest()
        if newest is None:
            return None
        files = sorted(p for p in newest.path.iterdir() if p.is_file() and p.stat().st_size > 1)
        file = draw.choice(files)
        with file.open("r+b") as content:
            content.truncate(file.stat().st_size // 2)
        return Harm("driver", f"SIGKILL; half of {newest.path.name}/{file.name} lost", torn=newest.step)


def partial(driver: Driver, draw: random.Random, patience: float) -> Harm | None:
    """A checkpoint is half written when the driver dies."""
    with _killed_at_last(driver) as checkpoints:
        newest = checkpoints.latest()
        if newest is None:
            return None
        ahead = checkpoints.folder / f".step-{newest.step + draw.choice((1, 5)):06d}.partial"
        shutil.rmtree(ahead, ignore_errors=True)
        ahead.mkdir()
        files = sorted(p for p in newest.path.iterdir() if p.is_file())
        for file in files[: len(files) // 2 + 1]:
            (ahead / file.name).write_bytes(file.read_bytes()[: max(1, file.stat().st_size // 2)])
        return Harm("driver", f"SIGKILL; {ahead.name} left behind")


def disk(driver: Driver, draw: random.Random, patience: float) -> Harm | None:
    """No file of the driver's can grow, for some seconds: writes fail with EFBIG."""
    pid, (soft, hard) = driver.pid, resource.prlimit(driver.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (QUOTA, hard))

    def lift() -> None:
        if driver.ended() is None and driver.pid == pid:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))

    seconds = draw.uniform(2, 8)
    return Harm("driver", f"full disk for {seconds:.0f} s", lift, seconds)


KINDS: dict[str, tuple[int, Kind]] = {
    "kill": (6, kill),
    "stop": (3, stop),
    "driver": (1, driver_killed),
    "freeze": (1, driver_frozen),
    "torn": (1, torn),
    "partial": (1, partial),
    "disk": (2, disk),
}
"""Name -> how often among the others, and what is done."""
ROLES_ONLY = ("kill", "stop")
"""Kinds that leave the driver alone."""


def shuffled(kinds: list[str], seed: int) -> Iterator[str]:
    """Kinds for ever: as often as they are meant to be, in an order that the seed decides."""
    draw = random.Random(f"{seed}/kinds")
    while True:
        bag = [kind for kind in kinds for _ in range(KINDS[kind][0])]
        draw.shuffle(bag)
        yield from bag


def _signal_a_role(driver: Driver, draw: random.Random, number: signal.Signals) -> Harm | None:
    there = [m for m in driver.members() if m.role not in ("driver", "ray") and not m.stopped]
    by_role: dict[str, list[Member]] = {}
    for member in there:
        by_role.setdefault(member.role, []).append(member)
    if not by_role:
        return None
    victim = draw.choice(by_role[draw.choice(sorted(by_role))])
    with contextlib.suppress(psutil.Error):
        victim.process.send_signal(number)
        return Harm(victim.role, f"{number.name} to {victim.process.pid}")
    return None


@contextlib.contextmanager
def _killed_at_last(driver: Driver) -> Iterator[Checkpoints]:
    """The driver stands still while something is done to its files, and then is dead; unless there is no checkpoint yet."""
    driver.members()
    driver.send(signal.SIGSTOP)
    checkpoints = Checkpoints(driver.run / "checkpoints", keep_last=1, best=None)
    there = checkpoints.latest() is not None
    try:
        yield checkpoints
    finally:
        if there:
            driver.kill()
        else:
            driver.send(signal.SIGCONT)
