"""A Ray cluster, started on this machine or joined; the roles of a run share one connection."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import DistributedSettings
from onpolicy.distributed.env import launched, world_size
from onpolicy.utils.device import SHOWN, available_cores, shown_gpus
from onpolicy.utils.errors import ConfigError

FORWARDED = ("CUDA_", "HF_", "NCCL_", "OMP_", "ONPOLICY_", "PYTORCH_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "VLLM_")
"""Prefixes of the environment variables that actors and tasks get from the driver."""

_lock = threading.Lock()
_joined = 0
_started_here = False


def join(roles: DistributedSettings, *, key: str = "distributed.address") -> None:
    """Connects this process to the cluster, the first time; every ``join`` needs a ``leave``.

    Args:
        key: by which an error names the address

    Raises:
        ConfigError: nothing answers at the address.
    """
    global _joined, _started_here
    refuse_driver_on_cluster(roles)
    with _lock:
        import ray

        if not ray.is_initialized():
            with _signal_handlers_kept():
                _connect(roles.address, key)
            _started_here = True
        _joined += 1


def leave() -> None:
    """Disconnects at the last ``leave``, and stops the cluster if it was started here."""
    global _joined, _started_here
    with _lock:
        import ray

        _joined -= 1
        if not _joined and _started_here:
            _started_here = False
            with _signal_handlers_kept():
                ray.shutdown()


@contextmanager
def leave_on_error() -> Iterator[None]:
    """Around what follows a ``join`` in a constructor: leaves the cluster again if it fails."""
    try:
        yield
    except BaseException:
        leave()
        raise


def resources(resolved: ResolvedConfig, *, gpus: int) -> dict[str, Any]:
    """Options of a run's actor or task: its GPUs, where the cluster has any, its share of the cores, the driver's environment.

    Raises:
        ConfigError: the run's roles need more GPUs than the cluster has.
    """
    available = cluster_gpus()
    if available:
        _check_gpus(resolved, available)
    environment = forwarded_environment()
    if not (available and gpus):
        threads = share_of_cores(resolved.config.distributed)
        # vLLM on a CPU would bind every replica to the same cores
        environment = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"} | environment
    return {
        "num_cpus": 0,
        "num_gpus": gpus if available else 0,
        "runtime_env": {"env_vars": environment},
    }


def forwarded_environment() -> dict[str, str]:
    """The driver's variables that its actors and tasks get."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(FORWARDED)
        and not name.endswith("_TOKEN")  # the cluster shows them to everyone
        and name != SHOWN  # set by Ray
    }


def cluster_gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def slots(asked: Mapping[str, tuple[str, float]]) -> int:
    """How many tasks the cluster has room for at a time.

    Args:
        asked: CPU or GPU -> the option that says how many a task needs, and the number

    Raises:
        ConfigError: no node is large enough for one task, so that it would wait for ever.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind, (option, each) in asked.items():
        if each < 0 or (each > 1 and each != int(each)):
            raise ConfigError(f"{option}: got {each:g}, expected a share of one or a whole number")
        largest = max((node.get(kind, 0.0) for node in nodes), default=0.0)
        if each > largest:
            raise ConfigError(f"{option}: got {each:g}, but no node of the cluster has more than {largest:g} {kind}s")
    needs = {kind: each for kind, (_, each) in asked.items() if each}
    return sum(int(min(node.get(kind, 0.0) // each for kind, each in needs.items())) for node in nodes)


def share_of_cores(roles: DistributedSettings) -> int:
    """Threads of each process on a CPU; the driver counts as one of the processes."""
    return max(1, available_cores() // (1 + roles.num_generators + roles.num_trainers + roles.num_reward_workers))


def gpus_per_generator(resolved: ResolvedConfig) -> int:
    return int(resolved.generator.plugin.options.get("tensor_parallel_size", 1))


def _check_gpus(resolved: ResolvedConfig, available: int) -> None:
    roles, each = resolved.config.distributed, gpus_per_generator(resolved)
    if roles.num_trainers and not roles.num_generators:
        raise ConfigError(
            f"distributed.num_generators: got 0, with {roles.num_trainers} trainers on GPUs (distributed.num_trainers): one engine would "
            "sample beside the first of them while the others wait; expected at least 1, or trainer.devices in place of both"
        )
    needed = roles.num_generators * each + roles.num_trainers
    if needed > available:
        raise ConfigError(
            f"distributed.num_generators: {roles.num_generators} of {each} GPUs each and {roles.num_trainers} trainers "
            f"(distributed.num_trainers) want {needed} GPUs; the cluster has {available}."
        )


def refuse_driver_on_cluster(roles: DistributedSettings) -> None:
    """Raises ConfigError where the driver trains on a GPU that a cluster, which others have started, gives to its actors too."""
    if roles.address is not None and roles.num_generators and drivers_gpus():
        raise ConfigError(
            f"distributed.num_trainers: got 0, so that the driver trains, on a GPU that the cluster at {roles.address!r} gives to a "
            "generator, too; expected 1 with trainer.name=deepspeed, or no distributed.address"
        )


def drivers_gpus() -> set[int]:
    """The GPUs on which this process has a model, as torch counts them, and those of the other ranks that a launcher has started here.

    A trainer is made before any actor. Being asked for its size alone makes torch initialise a GPU, so memory decides.
    """
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized() or not torch.cuda.memory_allocated():
        return set()
    if launched():
        return set(range(int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))))
    return {torch.cuda.current_device()}


@contextmanager
def without_the_drivers_gpu() -> Iterator[None]:
    """Inside, Ray finds the GPUs of this machine but those that have a trainer."""
    import torch

    own, before = drivers_gpus(), os.environ.get(SHOWN)
    if not own:
        yield
        return
    names = shown_gpus() or [str(i) for i in range(torch.cuda.device_count())]
    os.environ[SHOWN] = ",".join(name for i, name in enumerate(names) if i not in own)
    try:
        yield
    finally:
        if before is None:
            del os.environ[SHOWN]
        else:
            os.environ[SHOWN] = before


def _connect(address: str | None, key: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray._private import ray_constants, worker

    worker.listen_error_messages = lambda *_: None  # a paragraph on stdout about every actor that dies
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        try:
            probe_address(address)
            ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{key}: cannot join {address!r}: {str(error).splitlines()[0]}") from error
        return
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else 127.0.0.1 becomes the machine's own address
    ray_constants.ENABLE_RAY_CLUSTER = False  # somebody may have imported Ray before
    with without_the_drivers_gpu():
        ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)


def probe_address(address: str) -> None:
    """Raises OSError if nothing answers; Ray itself needs minutes to notice."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Puts back this process's handlers: Ray replaces the one of SIGTERM."""
    try:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
