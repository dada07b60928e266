"""Ray, started on this machine or joined; the roles of a run share one connection."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import RolesSettings
from onpolicy.utils.errors import ConfigError

PASSED_ON = ("CUDA_", "HF_", "NCCL_", "OMP_", "ONPOLICY_", "PYTORCH_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "VLLM_")
"""Beginnings of the environment variables that actors get from the driver."""

_lock = threading.Lock()
_joined = 0
_started_here = False


def join(roles: RolesSettings) -> None:
    """Connects this process with the cluster, the first time; every ``join`` wants its ``leave``."""
    global _joined, _started_here
    with _lock:
        import ray

        if not ray.is_initialized():
            with _own_signals():
                _connect(roles.address)
            _started_here = True
        _joined += 1


def leave() -> None:
    """Disconnects when the last one leaves, and stops what was started here."""
    global _joined, _started_here
    with _lock:
        import ray

        _joined -= 1
        if not _joined and _started_here:
            _started_here = False
            with _own_signals():
                ray.shutdown()


def resources(resolved: ResolvedConfig, *, gpus: int) -> dict[str, Any]:
    """Options of an actor of a run: its GPUs, where the cluster has any, its share of the cores, the driver's environment.

    Raises:
        ConfigError: the run's roles want more GPUs than the cluster has.
    """
    there = gpus_there()
    if there:
        _check_gpus(resolved, there)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED_ON) and not name.endswith("_TOKEN")  # the cluster shows them to everyone
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # Ray's to say
    if not (there and gpus):
        threads = share_of_cores(resolved.config.roles)
        # vLLM on a CPU would bind every replica to the same cores
        environment = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"} | environment
    return {
        "num_cpus": 0,
        "num_gpus": gpus if there else 0,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": environment},
    }


def gpus_there() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def share_of_cores(roles: RolesSettings) -> int:
    """Threads of each process on a CPU: the driver is one of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // (1 + roles.generators + roles.trainers + roles.rewards))


def gpus_per_generator(resolved: ResolvedConfig) -> int:
    return int(resolved.generator.plugin.options.get("tensor_parallel_size", 1))


def _check_gpus(resolved: ResolvedConfig, there: int) -> None:
    roles, each = resolved.config.roles, gpus_per_generator(resolved)
    wanted = roles.generators * each + roles.trainers
    if wanted > there:
        raise ConfigError(
            f"roles.generators: {roles.generators} of {each} GPUs each and {roles.trainers} trainers (roles.trainers) want "
            f"{wanted} GPUs; the cluster has {there}."
        )


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray._private import ray_constants, worker

    worker.listen_error_messages = lambda *_: None  # a paragraph on stdout about every actor that dies
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        try:
            _knock(address)
            ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"roles.address: cannot join {address!r}: {str(error).splitlines()[0]}") from error
        return
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else 127.0.0.1 becomes the machine's own address
    ray_constants.ENABLE_RAY_CLUSTER = False  # somebody may have imported Ray before
    ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)


def _knock(address: str) -> None:
    """Ray itself needs minutes to notice that nobody answers."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM; this process keeps its own."""
    try:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
