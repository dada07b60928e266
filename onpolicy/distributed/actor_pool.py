"""A pool of supervised Ray actors. An actor that dies, hangs or returns an invalid answer is replaced and its tasks are done again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onpolicy.config.schema import DistributedSettings
from onpolicy.distributed.supervisor import ActorSupervisor
from onpolicy.distributed.tasks import ActorLost, ActorSpec, TaskQueue
from onpolicy.utils.faults import Faults, GaveUp


class ActorPool(TaskQueue):
    """A queue of tasks and the actors that take them, each supervised by a thread of its own."""

    def __init__(self, spec: ActorSpec, size: int, roles: DistributedSettings, faults: Faults | None = None) -> None:
        super().__init__(spec, size)
        self.on_fault: Callable[[str, str], None] = faults.record if faults else (lambda role, what: None)
        """Called with the role and what happened, once for each actor that is replaced."""
        self._max_restarts = roles.max_restarts
        self.supervisors = [
            ActorSupervisor(self, number, roles.heartbeat_timeout_s, self.record_restart)
            for number in range(1, size + 1)
        ]
        for supervisor in self.supervisors:
            supervisor.start()

    def sync_state(self, state: Any) -> None:
        """Returns when every actor that is up has the new state; the others get it before they work.

        Raises:
            RoleLost: whoever has the state was lost meanwhile.
        """
        with self.changed:
            self.state, self.interruption = state, None
            self.changed.notify_all()
            self.changed.wait_for(lambda: self._is_settled(state))
            self.raise_failure()
            if self.interruption is not None:
                raise self.interruption

    def _is_settled(self, state: Any) -> bool:
        return (
            self.finished
            or self.interruption is not None
            or all(supervisor.is_current(state) for supervisor in self.supervisors)
        )

    def record_restart(self, number: int, in_a_row: int, lost: ActorLost) -> None:
        """Counts and reports that actor ``number`` is replaced, for the ``in_a_row``-th time without a finished task.

        Raises:
            GaveUp: more often in a row than ``distributed.max_restarts``.
        """
        if in_a_row > self._max_restarts:
            raise GaveUp(
                f"{self.spec.role} {number} of {self.size} was replaced {self._max_restarts} times in a row "
                f"(distributed.max_restarts) without finishing any work; at last: {lost}"
            ) from lost.__cause__
        self.on_fault(self.spec.role, f"{number} of {self.size} {lost}; a new one takes its place")

    def close(self) -> None:
        """Ends every actor."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.cancel()
        for supervisor in self.supervisors:
            supervisor.join()
