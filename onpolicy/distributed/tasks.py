"""Tasks on their way to the actors of a pool: what a pool is told about its actors, and the queue that its supervisors share."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

MAX_IN_FLIGHT = 8
"""Tasks that one actor has at most."""
FAIR_SHARE = 0.75
"""An actor takes this fraction of its share of the open tasks; the rest goes to whichever actor is done first."""


class ActorLost(Exception):
    """An actor or worker that can no longer be used; the message says why and follows the actor's name."""

    def __init__(self, why: str, raised: Exception | None = None) -> None:
        """
        Args:
            raised: what the work itself raised in the actor
        """
        super().__init__(why)
        self.raised = raised


class ActorSpec(Protocol):
    """What the actors of one role do. An actor is an ``onpolicy.distributed.actor.Actor``."""

    role: str

    def start(self) -> Any:
        """A new actor."""
        ...

    def sync_state(self, actor: Any, state: Any) -> Any:
        """Brings an actor to a state; returns Ray's reference to the answer. None: it cannot be had now, ask again.

        Raises:
            ActorLost: the actor did not take it.
            RoleLost: whoever has the state is lost.
        """
        ...

    def forget(self, actor: Any) -> None:
        """The actor is gone."""
        ...

    def send(self, actor: Any, task: Any) -> Any:
        """Sends a task; returns Ray's reference to the answer."""
        ...

    def validate(self, task: Any, answer: Any, *, before: Any, now: Any) -> Any:
        """The result of a task.

        Args:
            before: the actor's state when it got the task
            now: the pool's state now

        Raises:
            ActorLost: no working actor gives this answer.
        """
        ...

    def is_user_error(self, error: Exception) -> bool:
        """Whether the cause lies in the work, so that every other actor would raise it too."""
        ...

    def give_up_error(self, task: Any, losses: int, lost: ActorLost) -> Exception | None:
        """The error to raise for a task that has cost ``losses`` actors; None: it is tried again."""
        ...


@dataclass(eq=False)
class PendingTask:
    """A task without a result yet."""

    task: Any
    future: Future[Any] = field(default_factory=Future)
    before: Any = None
    """The actor's state when it got the task."""
    losses: int = 0
    """Actors that were lost over it."""


class TaskQueue:
    """The open tasks of a pool and the state that its actors must have; shared by the supervisors' threads."""

    def __init__(self, spec: ActorSpec, size: int) -> None:
        """
        Args:
            size: number of actors
        """
        self.spec, self.size = spec, size
        self.state: Any = None
        """What every actor must have been given before it works; compared by identity."""
        self.changed = threading.Condition()
        """Held to read or write anything here that more than one thread uses."""
        self.closed = False
        self._queue: deque[PendingTask] = deque()
        self._open: set[PendingTask] = set()
        self._failure: BaseException | None = None
        self.interruption: BaseException | None = None
        """Why no state could be had since the last one was set."""

    @property
    def finished(self) -> bool:
        return self.closed or self._failure is not None

    def submit(self, tasks: Iterable[Any]) -> list[Future[Any]]:
        """Queues tasks; each future gets its result once."""
        with self.changed:
            self.raise_failure()
            pending = [PendingTask(task) for task in tasks]
            self._queue.extend(pending)
            self._open.update(pending)
            self.changed.notify_all()
        return [task.future for task in pending]

    def cancel(self, futures: Sequence[Future[Any]] | None = None) -> None:
        """Drops these tasks, or all; whoever waits for one gets a ``CancelledError``."""
        with self.changed:
            chosen = None if futures is None else set(futures)
            for task in [t for t in self._open if chosen is None or t.future in chosen]:
                self.resolve(task, error=CancelledError())

    def take(self, held: int) -> PendingTask | None:
        """The next task for an actor that already has ``held``, if it may have another."""
        with self.changed:
            share = math.ceil(FAIR_SHARE * len(self._open) / self.size)
            if not self._queue or held >= min(share, MAX_IN_FLIGHT):
                return None
            return self._queue.popleft()

    def is_empty(self) -> bool:
        return not self._queue

    def is_open(self, task: PendingTask) -> bool:
        """Whether anyone still waits for it."""
        with self.changed:
            return task in self._open

    def resolve(self, task: PendingTask, result: Any = None, error: BaseException | None = None) -> None:
        """Sets the task's future; a second call is ignored."""
        with self.changed:
            if task not in self._open:
                return
            self._open.remove(task)
            if task in self._queue:
                self._queue.remove(task)
            if error is None:
                task.future.set_result(result)
            else:
                task.future.set_exception(error)

    def requeue(self, tasks: Iterable[PendingTask], lost: ActorLost) -> None:
        """Puts the tasks of a lost actor at the front, except those that cost too many actors."""
        with self.changed:
            for task in reversed([t for t in tasks if t in self._open]):
                task.losses += 1
                error = self.spec.give_up_error(task.task, task.losses, lost)
                if error is None:
                    self._queue.appendleft(task)
                else:
                    self.resolve(task, error=error)
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """No more work can be done: every open task gets the error."""
        with self.changed:
            self._failure = self._failure or error
            for task in list(self._open):
                self.resolve(task, error=self._failure)
            self.changed.notify_all()

    def interrupt(self, error: BaseException) -> None:
        """Nobody has the state that actors need: all open tasks get the error, and so does who sets a state; the next state may follow."""
        with self.changed:
            self.interruption = error
            for task in list(self._open):
                self.resolve(task, error=error)
            self.changed.notify_all()

    def raise_failure(self) -> None:
        """Raises what ``fail`` was called with."""
        if self._failure is not None:
            raise self._failure
