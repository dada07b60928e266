"""Faults of the roles that run in processes of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from onpolicy.utils.errors import UserError


class RoleLost(RuntimeError):
    """A trainer rank died or hung; the run goes back to its last checkpoint."""


class GaveUp(UserError, RuntimeError):
    """A role was replaced ``distributed.max_restarts`` times in a row without having done any work; names the role and what it died of."""


class Faults:
    """Tells the user of every fault of a role, and counts them."""

    def __init__(self, note: Callable[[str], None], roles: Iterable[str] = ()) -> None:
        """
        Args:
            note: takes one line
            roles: those whose count is logged from the beginning
        """
        self._note, self._counts, self._lock = note, dict.fromkeys(roles, 0), threading.Lock()

    def record(self, role: str, what: str) -> None:
        """Counts one fault of a role and tells the user what happened."""
        with self._lock:
            self._counts[role] = self._counts.get(role, 0) + 1
        self._note(f"{role}: {what}")

    def metrics(self) -> dict[str, float]:
        """``faults/<role>``: how many since this process began."""
        return {f"faults/{role}": float(count) for role, count in self._counts.items()}
