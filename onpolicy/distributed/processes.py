"""Processes of actors and tasks on this machine, and how they are ended for certain."""

from __future__ import annotations

import contextlib
from typing import Any


def local_process(node: str, pid: int) -> Any:
    """The ``psutil.Process`` with this id; None if it is gone or runs on another node of the cluster."""
    import psutil  # installed with Ray
    import ray

    if node != ray.get_runtime_context().get_node_id():
        return None
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def kill_tree(process: Any) -> None:
    """Kills a process and its descendants: a stopped one does not react to Ray."""
    family: list[Any] = []
    with contextlib.suppress(Exception):
        family = [process, *process.children(recursive=True)] if process is not None else []
    for member in family:
        with contextlib.suppress(Exception):
            member.kill()


def kill_actor(actor: Any, process: Any) -> None:
    """Kills an actor, and its process where that runs on this machine."""
    import ray

    kill_tree(process)
    with contextlib.suppress(Exception):
        ray.kill(actor)
