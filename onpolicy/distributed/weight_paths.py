"""Which way a replica of the generator gets the student's weights: from the trainer's GPU, or through Ray's object store.

A generator in the trainer's process takes them one by one from an iterator and has nothing to choose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onpolicy.config.registry import options_of
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.utils.device import gpu_uuid

if TYPE_CHECKING:
    from onpolicy.rollout.vllm_transfer import Backend

WORDS: dict[Backend, str] = {"nccl": "NCCL", "ipc": "CUDA IPC"}
"""vLLM's names, as the user reads them."""


@dataclass(frozen=True)
class Place:
    """Where a process of the run works."""

    node: str
    """Ray's id of the machine."""
    gpu: str | None
    """The GPU's own id; None: it works on a CPU."""


@dataclass(frozen=True)
class WeightPath:
    """How one replica gets weights."""

    backend: Backend | None
    """None: through the object store."""
    why: str = ""
    """Why through the object store."""


def here() -> Place:
    """The place of this process, a Ray actor."""
    import ray

    return Place(ray.get_runtime_context().get_node_id(), gpu_uuid())


@dataclass(frozen=True)
class Sender:
    """Who sends weights to all replicas."""

    place: Place
    """Of rank 0 of the trainer."""
    ranks: int
    """Of the trainer."""

    def path_to(self, replica: Place) -> WeightPath:
        """The way to a replica, from the place of the process that has its engine."""
        if self.place.gpu is None or replica.gpu is None:
            return WeightPath(None, f"{'the trainer' if self.place.gpu is None else 'a replica'} works on a CPU")
        if self.place != replica:
            return WeightPath("nccl")
        if self.ranks > 1:  # vLLM collects handles of all ranks, and NCCL refuses two processes on one GPU
            return WeightPath(None, "a replica shares the GPU of one of several ranks")
        return WeightPath("ipc")


def why_in_store(resolved: ResolvedConfig, trainer: Place | None, *, adapter: bool) -> str:
    """Why all replicas get weights through the object store, wherever they are; empty: each replica's place decides.

    Args:
        resolved: the config
        trainer: of rank 0, where Ray's actors train; None: the driver, or the ranks of a launcher
        adapter: whether the replicas get adapters alone
    """
    plugin = resolved.generator.plugin
    if adapter:
        return "adapters alone are sent"
    if trainer is None:
        return "distributed.num_trainers is 0"
    if trainer.gpu is None:
        return "the trainer works on a CPU"
    if "transfer_backend" not in options_of(plugin.function):
        return f"generator.name={plugin.name} takes them from an iterator alone"
    return str(plugin.function.why_no_transfer())  # type: ignore[attr-defined]


def said(why: str) -> str:
    """The line at the start of a run."""
    if why:
        return f"weight syncs go through the object store: {why}"
    return (
        "weight syncs go from GPU to GPU (NCCL; CUDA IPC on the trainer's own), to each replica after its first, "
        "which goes through the object store"
    )
