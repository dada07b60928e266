"""What can happen to a role that runs in a process of its own."""

from __future__ import annotations


class RoleLost(RuntimeError):
    """A trainer rank died or hung; the run goes back to its last checkpoint."""


class GaveUp(RuntimeError):
    """A role was replaced ``roles.restarts`` times in a row without having done any work; names the role and what it died of."""
