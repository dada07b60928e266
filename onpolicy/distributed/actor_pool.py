"""The actors of one role, which pull their work; one that dies, hangs or answers nonsense is replaced and its work done again."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from onpolicy.config.schema import RolesSettings
from onpolicy.distributed.supervisor import ActorLost, ActorSupervisor
from onpolicy.utils.faults import Faults, GaveUp

IN_FLIGHT = 8
"""Units that one actor has at most."""
FAIR_SHARE = 0.75
"""Of its share of what is open an actor takes so much; the rest goes to whoever is done first."""


class ActorSpec(Protocol):
    """What the actors of a role do. An actor has the methods ``hello``, ``ping`` and ``close`` (``onpolicy.distributed.actor``)."""

    role: str

    def start(self) -> Any:
        """A new actor."""
        ...

    def renew(self, actor: Any, state: Any) -> Any:
        """Ray's reference to an answer that comes once the actor is in this state."""
        ...

    def send(self, actor: Any, task: Any) -> Any:
        """Ray's reference to the answer to a task."""
        ...

    def accept(self, task: Any, answer: Any, *, before: Any, now: Any) -> Any:
        """What the task came to.

        Raises:
            Lost: the answer is nonsense.
        """
        ...

    def harmless(self, error: Exception) -> bool:
        """Whether the fault lies in the work, and the actor that raised it is as good as before."""
        ...

    def hopeless(self, task: Any, losses: int, lost: ActorLost) -> Exception | None:
        """What to say of a task that cost too many actors; None: it is tried again."""
        ...


@dataclass(eq=False)
class PendingTask:
    """A piece of work on its way."""

    task: Any
    future: Future[Any] = field(default_factory=Future)
    before: Any = None
    """The actor's state when it got the task."""
    losses: int = 0


class ActorPool:
    """As many actors as were asked for, each looked after by a thread of its own."""

    def __init__(self, duty: ActorSpec, size: int, roles: RolesSettings, faults: Faults | None = None) -> None:
        self.duty, self.size, self.roles = duty, size, roles
        self.on_fault: Callable[[str, str], None] = faults.record if faults else lambda role, what: None
        """Called with the role and what happened, once for each actor that is replaced."""
        self.state: Any = None
        """What every actor must have been given before it works; compared by identity."""
        self.changed = threading.Condition()
        """Held to read or write anything here that more than one thread uses."""
        self.closed = False
        self._queue: deque[PendingTask] = deque()
        self._open: set[PendingTask] = set()
        self._failure: BaseException | None = None
        self.seats = [ActorSupervisor(self, number) for number in range(1, size + 1)]
        for seat in self.seats:
            seat.start()

    def submit(self, tasks: Iterable[Any]) -> list[Future[Any]]:
        """Queues them; the results come through the futures, each once."""
        with self.changed:
            self._raise_failure()
            units = [PendingTask(task) for task in tasks]
            self._queue.extend(units)
            self._open.update(units)
            self.changed.notify_all()
        return [unit.future for unit in units]

    def renew(self, state: Any) -> None:
        """Returns when every actor that is up has been given the new state; the others get it before they work."""
        with self.changed:
            self.state = state
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.finished or all(seat.has(state) for seat in self.seats))
            self._raise_failure()

    def cancel(self, futures: Sequence[Future[Any]] | None = None) -> None:
        """Forgets these units, or all; whoever waits for one gets a ``CancelledError``."""
        with self.changed:
            wanted = None if futures is None else set(futures)
            for unit in [u for u in self._open if wanted is None or u.future in wanted]:
                self.settle(unit, error=CancelledError())

    def close(self) -> None:
        """Ends every actor."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.cancel()
        for seat in self.seats:
            seat.join()

    @property
    def finished(self) -> bool:
        return self.closed or self._failure is not None

    def take(self, held: int) -> PendingTask | None:
        """The next unit for an actor that has so many already, if it may have another."""
        with self.changed:
            share = math.ceil(FAIR_SHARE * len(self._open) / self.size)
            if not self._queue or held >= min(share, IN_FLIGHT):
                return None
            return self._queue.popleft()

    def waiting(self) -> bool:
        return bool(self._queue)

    def wanted(self, unit: PendingTask) -> bool:
        """Whether anybody still waits for it."""
        with self.changed:
            return unit in self._open

    def settle(self, unit: PendingTask, result: Any = None, error: BaseException | None = None) -> None:
        """The unit's one end; a late one is ignored."""
        with self.changed:
            if unit not in self._open:
                return
            self._open.remove(unit)
            if unit in self._queue:
                self._queue.remove(unit)
            if error is None:
                unit.future.set_result(result)
            else:
                unit.future.set_exception(error)

    def put_back(self, units: Iterable[PendingTask], lost: ActorLost) -> None:
        """Work that an actor did not finish goes to the front, unless it cost too many."""
        with self.changed:
            for unit in reversed([u for u in units if u in self._open]):
                unit.losses += 1
                error = self.duty.hopeless(unit.task, unit.losses, lost)
                if error is None:
                    self._queue.appendleft(unit)
                else:
                    self.settle(unit, error=error)
            self.changed.notify_all()

    def replaced(self, number: int, in_a_row: int, lost: ActorLost) -> None:
        """Counts and says it.

        Raises:
            GaveUp: too often in a row.
        """
        who = f"{self.duty.role} {number} of {self.size}"
        if in_a_row > self.roles.restarts:
            raise GaveUp(
                f"{who} was replaced {self.roles.restarts} times in a row (roles.restarts) without finishing any work; "
                f"at last: {lost}"
            ) from lost.__cause__
        self.on_fault(self.duty.role, f"{number} of {self.size} {lost}; a new one takes its place")

    def fail(self, error: BaseException) -> None:
        """Nothing more can be done: everyone who waits is told."""
        with self.changed:
            self._failure = self._failure or error
            for unit in list(self._open):
                self.settle(unit, error=self._failure)
            self.changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
