"""``processes.Runs`` as Ray tasks on any node with room. A run whose node or worker is lost is started once more."""

import os
from concurrent.futures import Future
from typing import Any

import ray

from onpolicy.config.schema import DistributedSettings
from onpolicy.distributed import ray_cluster
from onpolicy.experiments.sweep.grid import Cell
from onpolicy.experiments.sweep.shared_folder import require_finished, run_on_node
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.terminal import plain

GRACE = 60.0
"""Seconds that cancelled runs have to finish their step and save."""

HERE = "local"
"""In place of an address: a cluster on this machine."""


class RayRuns:
    def __init__(self, address: str, *, cpus: int = 1, gpus: float | None = None) -> None:
        """``address``: ``auto``, ``host:port``, or ``local`` to start a cluster here; ``gpus``: of a run, None for one if there are any."""
        ray_cluster.join(DistributedSettings(address=None if address == HERE else address), key="--ray")
        gpus = float(bool(ray_cluster.cluster_gpus())) if gpus is None else gpus
        with ray_cluster.leave_on_error():
            self.at_once = ray_cluster.slots({"CPU": ("--cpus-per-run", cpus), "GPU": ("--gpus-per-run", gpus)})
        environment = {"env_vars": ray_cluster.forwarded_environment() | {"OMP_NUM_THREADS": str(cpus)}}
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 1, "runtime_env": environment}
        self._refs: dict[Future[int], Any] = {}

    def start(self, cell: Cell) -> Future[int]:
        cell.folder.mkdir(parents=True, exist_ok=True)  # nodes that share the file system see it
        ref = ray.remote(run_on_node).options(**self._options).remote(cell, os.getcwd())
        self._refs[future := ref.future()] = ref
        return future

    def failure(self, cell: Cell, done: Future[int]) -> str | None:
        self._refs.pop(done, None)
        try:
            if done.result():
                return plain(cell.log)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConfigError):  # the other runs would end alike
                raise error.cause from None
            return plain(f"{cell.log} ({type(error.cause).__name__}: {error.cause})")
        except ray.exceptions.RayError as error:
            return f"{plain(cell.log)} (lost, and lost again when it was started once more: {type(error).__name__})"
        require_finished(cell)
        return None

    def stop(self) -> None:
        for ref in self._open():
            ray.cancel(ref)  # a run under way finishes its step and saves

    def close(self) -> None:
        try:
            refs = self._open()
            self.stop()
            if refs:
                ray.wait(refs, num_returns=len(refs), timeout=GRACE)
        finally:
            ray_cluster.leave()

    def _open(self) -> list[Any]:
        return [ref for future, ref in self._refs.items() if not future.done()]
