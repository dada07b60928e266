"""What can happen to a role that runs in a process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from onpolicy.utils.errors import UserError


class RoleLost(RuntimeError):
    """A trainer rank died or hung; the run goes back to its last checkpoint."""


class GaveUp(UserError, RuntimeError):
    """A role was replaced ``roles.restarts`` times in a row without having done any work; names the role and what it died of."""


class Faults:
    """Says what happened to the roles of a run, and counts it."""

    def __init__(self, say: Callable[[str], None], roles: Iterable[str] = ()) -> None:
        """
        Args:
            say: takes one line
            roles: those whose count is logged from the beginning
        """
        self._say, self._counts, self._lock = say, dict.fromkeys(roles, 0), threading.Lock()

    def __call__(self, role: str, what: str) -> None:
        with self._lock:
            self._counts[role] = self._counts.get(role, 0) + 1
        self._say(f"{role}: {what}")

    def metrics(self) -> dict[str, float]:
        """How often, since this process began, by role."""
        return {f"faults/{role}": float(count) for role, count in self._counts.items()}
