"""The thread that supervises one actor of a pool."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from onpolicy.distributed.heartbeat import STARTUP_FACTOR, Deadline, HeartbeatMonitor
from onpolicy.distributed.processes import kill_actor, local_process
from onpolicy.distributed.remote_errors import one_line
from onpolicy.distributed.tasks import ActorLost, PendingTask, TaskQueue
from onpolicy.utils.faults import RoleLost

POLL = 0.05
"""Seconds that the thread waits for an answer at a time."""
IDLE = 1.0
"""Seconds between two heartbeats of an actor without work: one that dies is replaced before it is needed."""


class ActorSupervisor(threading.Thread):
    """Starts an actor, brings it to the pool's state, gives it tasks, takes its answers, and replaces it when it is lost."""

    def __init__(
        self, queue: TaskQueue, number: int, timeout: float, record_restart: Callable[[int, int, ActorLost], None]
    ) -> None:
        """
        Args:
            number: of the actor in its pool, from 1
            timeout: seconds without progress after which an actor with work is lost
            record_restart: called with number, losses in a row and the loss; what it raises ends the pool
        """
        super().__init__(name=f"{queue.spec.role} {number}", daemon=True)
        self._queue, self._spec, self.number = queue, queue.spec, number
        self._timeout, self._record_restart = timeout, record_restart
        self._actor: Any = None
        self._process: Any = None
        """The actor's, where it runs on this machine."""
        self._monitor: HeartbeatMonitor | None = None
        """None until the actor is up."""
        self._was_up = False
        self._state: Any = None
        self._tasks: dict[Any, PendingTask] = {}
        self._sync: tuple[Any, Any] | None = None
        """Reference and state that the actor is being brought to."""
        self._losses_in_a_row = 0

    def is_current(self, state: Any) -> bool:
        """Whether its actor has been given this state, or is not up."""
        return self._monitor is None or self._state is state

    @property
    def pid(self) -> int | None:
        """The actor's process id, once it is up on this machine."""
        process = self._process
        return None if process is None else int(process.pid)

    def run(self) -> None:
        try:
            while not self._queue.finished:
                try:
                    self._tick()
                except ActorLost as lost:
                    self._replace(lost)
        except BaseException as error:  # a bug here, too, must not leave everyone waiting
            self._queue.fail(error)
        finally:
            self._stop_actor()

    def _tick(self) -> None:
        if self._monitor is None:
            self._start_actor()
        if self._monitor is None:
            return
        self._dispatch(self._monitor)
        if not self._busy():
            with self._queue.changed:
                if self._queue.state is not self._state:  # it cannot be had now
                    self._queue.changed.wait(POLL)
                elif self._queue.is_empty() and not self._queue.finished:
                    self._queue.changed.wait(IDLE)
        self._poll(self._monitor)

    def _busy(self) -> bool:
        return bool(self._tasks) or self._sync is not None

    def _start_actor(self) -> None:
        import ray

        if self._actor is None:
            self._actor = self._spec.start()
        ready, deadline = self._actor.ready.remote(), Deadline(STARTUP_FACTOR * self._timeout)
        while not ray.wait([ready], timeout=0.2)[0]:
            if self._queue.finished:
                return
            if deadline.passed():
                raise ActorLost(f"did not start within {deadline.seconds:g} s")
        try:
            place = self._read(ready)
        except ray.exceptions.RayTaskError as error:
            if not self._was_up:
                raise error.cause from None
            raise ActorLost(f"could not start ({one_line(error.cause)})") from error.cause
        self._process = local_process(*place)
        with self._queue.changed:
            self._monitor, self._was_up = HeartbeatMonitor([self._actor], self._timeout), True

    def _dispatch(self, monitor: HeartbeatMonitor) -> None:
        """State first: no task is done with a state older than the pool's when the task was taken."""
        was_busy, state = self._busy(), self._queue.state
        if self._sync is not None:
            return
        if self._state is not state:
            self._sync = self._begin_sync(state)
        else:
            while (task := self._queue.take(len(self._tasks))) is not None:
                task.before = self._state
                self._tasks[self._spec.send(self._actor, task.task)] = task
        if not was_busy:
            monitor.report_progress()

    def _begin_sync(self, state: Any) -> tuple[Any, Any] | None:
        try:
            ref = self._spec.sync_state(self._actor, state)
        except RoleLost as lost:  # the pool itself goes on, and so does the run, from its last checkpoint
            self._queue.interrupt(lost)
            ref = None
        return None if ref is None else (ref, state)

    def _poll(self, monitor: HeartbeatMonitor) -> None:
        """Answers, and heartbeats while there are none."""
        import ray

        if refs := [*self._tasks, *([self._sync[0]] if self._sync else [])]:
            for ref in ray.wait(refs, num_returns=1, timeout=POLL)[0]:
                self._on_reply(ref)
                monitor.report_progress()
        failure = monitor.poll(busy=self._busy())
        if failure is not None and failure.kind == "died":
            raise ActorLost("died") from failure.error
        if failure is not None:
            raise ActorLost(f"gave no sign of progress for {self._timeout:g} s (distributed.heartbeat_timeout_s)")

    def _on_reply(self, ref: Any) -> None:
        import ray

        answer, error = None, None
        try:
            answer = self._read(ref)
        except ray.exceptions.RayTaskError as raised:
            error = raised.cause
        if self._sync and ref is self._sync[0]:
            self._on_synced(error)
        else:
            self._on_result(ref, answer, error)

    def _on_synced(self, error: Exception | None) -> None:
        assert self._sync is not None
        if error is not None:
            if self._spec.is_user_error(error):
                raise error
            raise ActorLost(f"did not take the weights ({one_line(error)})") from error
        with self._queue.changed:
            self._state, self._sync = self._sync[1], None
            self._queue.changed.notify_all()

    def _on_result(self, ref: Any, answer: Any, error: Exception | None) -> None:
        task = self._tasks[ref]
        if error is not None:
            if not self._spec.is_user_error(error):
                raise ActorLost(f"failed ({one_line(error)})", raised=error) from error
            self._queue.resolve(task, error=error)
        elif self._queue.is_open(task):
            result = self._spec.validate(task.task, answer, before=task.before, now=self._queue.state)
            self._queue.resolve(task, result)
        del self._tasks[ref]
        self._losses_in_a_row = 0

    def _read(self, ref: Any) -> Any:
        """An answer; what the actor's own code raised comes as a ``RayTaskError``."""
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.ActorDiedError as error:
            raise ActorLost("died") from error
        except Exception as error:  # of Ray, or an answer that cannot be unpickled
            raise ActorLost(f"cannot be understood ({one_line(error)})") from error

    def _replace(self, lost: ActorLost) -> None:
        tasks = list(self._tasks.values())
        self._stop_actor()
        self._losses_in_a_row += 1
        self._record_restart(self.number, self._losses_in_a_row, lost)
        self._queue.requeue(tasks, lost)

    def _stop_actor(self) -> None:
        """Ends the actor for certain; an idle one is closed first when the pool is closed."""
        import ray

        actor, process, idle = self._actor, self._process, not self._busy()
        with self._queue.changed:
            self._actor = self._process = self._sync = self._state = self._monitor = None
            self._tasks = {}
            self._queue.changed.notify_all()
        if actor is None:
            return
        self._spec.forget(actor)
        with contextlib.suppress(Exception):
            if idle and self._queue.closed:
                ray.get(actor.close.remote(), timeout=5)
        kill_actor(actor, process)
