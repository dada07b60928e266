"""One place in a crew: the actor that holds it now, and the thread that looks after it."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from onpolicy.distributed.remote_errors import Raised

if TYPE_CHECKING:
    from onpolicy.distributed.actor_pool import ActorPool, PendingTask

GLANCE = 0.05
"""Seconds after which the thread looks up from waiting for answers."""
IDLE = 1.0
"""Seconds between two looks at an actor without work: one that dies is replaced before it is needed."""
STARTING = 10
"""An actor that loads a model may be silent for so many times ``roles.patience``."""


class ActorLost(Exception):
    """An actor that is of no use any more; says why."""

    def __init__(self, why: str, raised: Exception | None = None) -> None:
        """
        Args:
            why: goes on after the actor's name
            raised: what the work itself raised in the actor
        """
        super().__init__(why)
        self.raised = raised


class ActorSupervisor(threading.Thread):
    """Starts an actor, gives it its state and its work, takes its answers, and replaces it when need be."""

    def __init__(self, crew: ActorPool, number: int) -> None:
        super().__init__(name=f"{crew.duty.role} {number}", daemon=True)
        self._crew, self.number = crew, number
        self._actor: Any = None
        self._process: Any = None
        """Of the actor, where it runs on this machine."""
        self._up = self._ever_up = False
        self._state: Any = None
        self._work: dict[Any, PendingTask] = {}
        self._renewal: tuple[Any, Any] | None = None
        self._ping: Any = None
        self._progress: Any = None
        self._alive_at = self._pinged_at = self._looked_at = 0.0
        self._in_a_row = 0

    def has(self, state: Any) -> bool:
        """Whether its actor has been given this state, or is none that works."""
        return not self._up or self._state is state

    @property
    def pid(self) -> int | None:
        """Of its actor, once that is up on this machine."""
        process = self._process
        return None if process is None else int(process.pid)

    def run(self) -> None:
        try:
            while not self._crew.finished:
                try:
                    self._turn()
                except ActorLost as lost:
                    self._replace(lost)
        except BaseException as error:  # also a bug must not leave everyone waiting
            self._crew.fail(error)
        finally:
            self._dismiss()

    def _turn(self) -> None:
        if not self._up:
            self._bring_up()
        self._hand_out()
        if self._up and not self._busy():
            with self._crew.changed:
                if not self._crew.waiting() and self._crew.state is self._state and not self._crew.finished:
                    self._crew.changed.wait(IDLE)
        self._listen()

    def _busy(self) -> bool:
        return bool(self._work) or self._renewal is not None

    def _bring_up(self) -> None:
        import ray

        if self._actor is None:
            self._actor = self._crew.duty.start()
        hello, deadline = self._actor.hello.remote(), time.monotonic() + STARTING * self._crew.roles.patience
        while not ray.wait([hello], timeout=0.2)[0]:
            if self._crew.finished:
                return
            if time.monotonic() > deadline:
                raise ActorLost(f"did not start within {STARTING * self._crew.roles.patience:g} s")
        answer = self._read(hello)
        if isinstance(answer, Raised):
            error = answer.error()
            if not self._ever_up:
                raise error
            raise ActorLost(f"could not start ({line_of(error)})") from error
        node, pid = answer
        self._process = process_of(pid) if node == ray.get_runtime_context().get_node_id() else None
        with self._crew.changed:
            self._up = self._ever_up = True
        self._alive_at = self._looked_at = time.monotonic()

    def _hand_out(self) -> None:
        """New state first: an actor works with nothing older than what was current when it got the work."""
        crew, was_busy = self._crew, self._busy()
        state = crew.state
        if not self._up or self._renewal is not None:
            return
        if self._state is not state:
            self._renewal = (crew.duty.renew(self._actor, state), state)
        else:
            while (unit := crew.take(len(self._work))) is not None:
                unit.before = self._state
                self._work[crew.duty.send(self._actor, unit.task)] = unit
        if not was_busy:
            self._alive_at = time.monotonic()

    def _listen(self) -> None:
        """Answers, and signs of life while there are none."""
        import ray

        now, patience = time.monotonic(), self._crew.roles.patience
        if not self._up:
            return
        if now - self._looked_at > patience / 2:  # it was this process that stood still
            self._alive_at = now
        self._looked_at = now
        if self._ping is None and now - self._pinged_at > min(IDLE, patience / 4):
            self._ping, self._pinged_at = self._actor.ping.remote(), now
        refs = [*self._work, *([self._renewal[0]] if self._renewal else []), *([self._ping] if self._ping else [])]
        ready, _ = ray.wait(refs, num_returns=1, timeout=GLANCE)
        for ref in ready:
            self._receive(ref)
        if time.monotonic() - self._alive_at > patience:
            raise ActorLost(f"gave no sign of progress for {patience:g} s (roles.patience)")

    def _receive(self, ref: Any) -> None:
        answer = self._read(ref)
        if ref is self._ping:
            self._ping = None
            if answer == self._progress and self._busy():
                return
            self._progress = answer
        elif self._renewal and ref is self._renewal[0]:
            self._renewed(answer)
        else:
            self._finish(ref, answer)
        self._alive_at = time.monotonic()

    def _renewed(self, answer: Any) -> None:
        assert self._renewal is not None
        if isinstance(answer, Raised):
            error = answer.error()
            if self._crew.duty.harmless(error):
                raise error
            raise ActorLost(f"did not take the weights ({line_of(error)})") from error
        with self._crew.changed:
            self._state, self._renewal = self._renewal[1], None
            self._crew.changed.notify_all()

    def _finish(self, ref: Any, answer: Any) -> None:
        unit, duty = self._work[ref], self._crew.duty
        if isinstance(answer, Raised):
            error = answer.error()
            if not duty.harmless(error):
                raise ActorLost(f"failed ({line_of(error)})", raised=error) from error
            self._crew.settle(unit, error=error)
        elif self._crew.wanted(unit):
            result = duty.accept(unit.task, answer, before=unit.before, now=self._crew.state)
            self._crew.settle(unit, result)
        del self._work[ref]
        self._in_a_row = 0

    def _read(self, ref: Any) -> Any:
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.ActorDiedError as error:
            raise ActorLost("died") from error
        except Exception as error:  # of Ray, or an answer that cannot be unpickled
            raise ActorLost(f"cannot be understood ({line_of(error)})") from error

    def _replace(self, lost: ActorLost) -> None:
        units = list(self._work.values())
        self._dismiss()
        self._in_a_row += 1
        self._crew.replaced(self.number, self._in_a_row, lost)
        self._crew.put_back(units, lost)

    def _dismiss(self) -> None:
        """Ends the actor for certain."""
        import ray

        actor, process, idle = self._actor, self._process, not self._busy()
        with self._crew.changed:
            self._actor = self._process = self._renewal = self._ping = self._state = self._progress = None
            self._up = False
            self._work = {}
            self._crew.changed.notify_all()
        if actor is None:
            return
        with contextlib.suppress(Exception):
            if idle and self._crew.closed:
                ray.get(actor.close.remote(), timeout=5)
        end(actor, process)


def process_of(pid: int) -> Any:
    """Of this machine; None if it is gone."""
    import psutil  # Ray brings it along

    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def end(actor: Any, process: Any) -> None:
    """Kills an actor, and where it lives on this machine its process with all descendants: one that was stopped does not listen to Ray."""
    import ray

    family: list[Any] = []
    with contextlib.suppress(Exception):
        family = [process, *process.children(recursive=True)] if process is not None else []
    with contextlib.suppress(Exception):
        ray.kill(actor)
    for member in family:
        with contextlib.suppress(Exception):
            member.kill()


def line_of(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
