"""Runs of a sweep as tasks of a Ray cluster: each the process that it is without Ray, wherever there is room."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from typing import Any

import ray

from onpolicy.config.registry import ConfigError
from onpolicy.config.schema import RolesSettings
from onpolicy.distributed import ray_cluster
from onpolicy.experiments.sweep.grid import Cell
from onpolicy.experiments.sweep.processes import STOPPED, run_cell
from onpolicy.utils.terminal import plain

LOCAL = "local"
"""Stands for a cluster of this machine alone, which ends with the sweep."""
UNSEEN = -1
"""What a task comes to whose node does not see the run's folder."""
LATE = 10.0
"""Seconds that a shared file system may take to show here what a node has written."""
GRACE = 60.0
"""Seconds in which runs that are called off finish their step and save."""


class RayRuns:
    """As many at a time as the cluster has room for. A run whose node or worker was lost is started once more."""

    def __init__(self, address: str, *, cpus: int = 1, gpus: float | None = None) -> None:
        """
        Args:
            address: ``auto``, ``host:port`` or LOCAL
            cpus: cores of a run
            gpus: GPUs of a run; None: one where the cluster has any

        Raises:
            ConfigError: nobody answers there, or no node has so much.
        """
        try:
            ray_cluster.join(RolesSettings(address=None if address == LOCAL else address))
        except ConfigError as error:
            raise ConfigError(str(error).replace("roles.address", "--ray", 1)) from error
        self._cpus, self._gpus = cpus, float(bool(ray_cluster.gpus_there())) if gpus is None else gpus
        self._tasks: dict[Future[int], Any] = {}
        try:
            self.at_once = self._room()
        except BaseException:
            self.close()
            raise

    def start(self, cell: Cell) -> Future[int]:
        cell.folder.mkdir(parents=True, exist_ok=True)  # a node that shares the file system sees it
        task = ray.remote(_task).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=1,
            runtime_env={"env_vars": _environment(self._cpus)},
        )
        reference = task.remote(cell, os.getcwd())
        future: Future[int] = reference.future()
        self._tasks[future] = reference
        return future

    def failure(self, cell: Cell, done: Future[int]) -> str | None:
        self._tasks.pop(done, None)
        try:
            code = done.result()
        except ray.exceptions.RayTaskError as error:
            return plain(f"{cell.log} ({type(error.cause).__name__}: {error.cause})")
        except ray.exceptions.RayError as error:
            return f"{plain(cell.log)} (lost, and lost again when it was started once more: {type(error).__name__})"
        if code == UNSEEN or (code == 0 and not _here(cell)):
            what = (
                "its node does not see the folder"
                if code == UNSEEN
                else "it ended well, but its checkpoint is not here"
            )
            raise ConfigError(
                f"--ray: {cell.name}: {what} {str(cell.folder.resolve())!r}. The runs' folder must lie on a file system that all nodes "
                "share under one path: name one with --output."
            )
        return plain(cell.log) if code else None

    def close(self) -> None:
        """Runs that are under way finish their step and save; what waits does not start."""
        tasks = [task for future, task in self._tasks.items() if not future.done()]
        try:
            for task in tasks:
                ray.cancel(task)
            if tasks:
                ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)
        finally:
            ray_cluster.leave()

    def _room(self) -> int:
        """Raises ConfigError where a run would wait for ever."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {"CPU": ("--cpus-per-run", float(self._cpus)), "GPU": ("--gpus-per-run", self._gpus)}
        for kind, (option, each) in wanted.items():
            if each < 0 or (each > 1 and each != int(each)):
                raise ConfigError(f"{option}: got {each:g}, wanted a share of one or a whole number")
            largest = max((node.get(kind, 0.0) for node in nodes), default=0.0)
            if each > largest:
                raise ConfigError(
                    f"{option}: got {each:g}, but no node of the cluster has more than {largest:g} {kind}s"
                )
        asked = {kind: each for kind, (_, each) in wanted.items() if each}
        return sum(int(min(node.get(kind, 0.0) // each for kind, each in asked.items())) for node in nodes)


def _task(cell: Cell, folder: str) -> int:
    """On a node: the run's exit status, or UNSEEN."""
    try:
        os.chdir(folder)
    except OSError:
        return UNSEEN
    if not cell.folder.is_dir():
        return UNSEEN
    own = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_ADDRESS"}  # no worker itself
    try:
        return run_cell(cell, own)
    except KeyboardInterrupt:
        return STOPPED


def _environment(cpus: int) -> dict[str, str]:
    """The driver's, as far as the cluster may see it."""
    passed = {k: v for k, v in os.environ.items() if k.startswith(ray_cluster.PASSED_ON) and not k.endswith("_TOKEN")}
    passed.pop("CUDA_VISIBLE_DEVICES", None)  # Ray's to say
    return passed | {"OMP_NUM_THREADS": str(cpus)}


def _here(cell: Cell) -> bool:
    deadline = time.monotonic() + LATE
    while not cell.finished():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
