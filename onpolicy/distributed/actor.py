"""What every actor of a crew can do (``onpolicy.distributed.actor_pool``)."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from onpolicy.distributed.remote_errors import outcome


class Worker:
    """To be made an actor; what takes long belongs into ``set_up``."""

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: the driver's working folder, which paths in a config start from
        """
        self.folder, self.progress = folder, 0

    def hello(self) -> Any:
        """Where this actor lives, once it is ready for work: node and process; or a ``Raised``."""
        return outcome(self._hello)

    def ping(self) -> int:
        """A number that changes while there is progress."""
        return self.progress

    def close(self) -> None:
        """Gives back what it holds."""

    def set_up(self) -> None:
        """Makes it ready for work."""

    def alive(self, *_: Any) -> None:
        """Counts progress."""
        self.progress += 1

    def _hello(self) -> tuple[str, int]:
        import ray

        with contextlib.suppress(OSError):  # on another machine there may be no such folder
            os.chdir(self.folder)
        self.set_up()
        return ray.get_runtime_context().get_node_id(), os.getpid()
