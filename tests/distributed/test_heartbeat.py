"""Deadlines: 1. they pass after their time and start again when extended; 2. time in which this process was suspended does not count."""

from __future__ import annotations

import pytest

from onpolicy.distributed import heartbeat
from onpolicy.distributed.heartbeat import Deadline


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(heartbeat, "time", made)
    return made


def read_for(deadline: Deadline, clock: Clock, seconds: int) -> bool:
    """Whether it has passed, read once a second."""
    passed = False
    for _ in range(seconds):
        clock.now += 1
        passed = deadline.passed()
    return passed


def test_a_deadline_passes_and_can_be_extended(clock: Clock) -> None:
    deadline = Deadline(8)
    assert not read_for(deadline, clock, 8)
    assert read_for(deadline, clock, 1)
    deadline.extend()
    assert deadline.elapsed() == 0 and not read_for(deadline, clock, 8)


def test_time_in_which_this_process_was_suspended_does_not_count(clock: Clock) -> None:
    deadline = Deadline(8)
    read_for(deadline, clock, 7)
    clock.now += 5
    assert not deadline.passed() and not read_for(deadline, clock, 8)
    assert read_for(deadline, clock, 1)
