"""Base class of the Ray actors that are supervised (``onpolicy.distributed.supervisor``, ``ray_trainer_group``)."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from onpolicy.distributed.remote_errors import picklable_errors


class Actor:
    """A class to pass to ``ray.remote``. What takes long belongs into ``set_up``, not into the constructor."""

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: the driver's working directory, to which paths in a config are relative
        """
        self.folder, self.progress = folder, 0

    @picklable_errors()
    def ready(self) -> tuple[str, int]:
        """Sets the actor up; returns the id of its node and of its process."""
        import ray

        with contextlib.suppress(OSError):  # another machine may have no such folder
            os.chdir(self.folder)
        self.set_up()
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def set_up(self) -> None:
        """Loads what the work needs."""

    def heartbeat(self) -> int:
        """A number that changes while work makes progress."""
        return self.progress

    def report_progress(self, *_: Any) -> None:
        """Changes the number; takes and ignores any arguments, so that it can be passed as a callback."""
        self.progress += 1

    def close(self) -> None:
        """Frees what it holds."""
