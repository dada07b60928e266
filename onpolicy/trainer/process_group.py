"""The process group of DeepSpeed's ranks: a launcher's, one that is given, or one of a single rank."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from onpolicy.trainer.compiler_lock import abandoned_locks_removed

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

Meeting = Path | tuple[str, int]
"""Where the ranks find each other: a file, or host and port of rank 0's store."""
COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""How long a rank waits for another, which may be saving a checkpoint or sampling for an evaluation."""


def join_process_group(store: Store | None = None) -> str:
    """Joins the process group that the environment describes, or a group of one; returns this rank's device.

    No port is chosen here that another process could take before it is bound: a group of one has a store in memory.

    Args:
        store: by which the ranks find each other; RANK and WORLD_SIZE say who they are. None: the launcher's, if there is one
    """
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    else:
        torch.cuda.set_device(device)
    import deepspeed
    import torch.distributed as dist

    if dist.is_initialized():
        return device
    if store is None and not {"RANK", "MASTER_PORT"} <= os.environ.keys():
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed reads them
        store = dist.HashStore()  # type: ignore[attr-defined]
    place: dict[str, Any] = {}
    if store is not None:
        place = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    if device != "cpu" and os.environ["WORLD_SIZE"] != "1":
        place["device_id"] = torch.device(device)  # as DeepSpeed does; a single rank would only pay for it
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    warnings.filterwarnings("ignore", r"`torch.distributed.*is deprecated", FutureWarning)  # DeepSpeed's own calls
    with contextlib.redirect_stdout(io.StringIO()), abandoned_locks_removed():  # it prints what it compiles
        # serves DeepSpeed's inference alone; compiling it takes a minute of a processor, and a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        dist.init_process_group(backend, store=store, timeout=COLLECTIVE_TIMEOUT, **place)
        if dist.get_world_size() == 1:
            leave_at_exit()
        deepspeed.init_distributed(backend, timeout=COLLECTIVE_TIMEOUT, auto_mpi_discovery=False, verbose=False)
    return device


def leave_at_exit() -> None:
    """Destroys the process group when the interpreter exits, while Python still runs.

    gloo's threads may hold tensors of their last collective; if they drop them during finalization, the process aborts (pytorch#179291).
    Only for ranks that have finished their work: after a failure another rank may be waiting in a collective, and so would this one.
    """
    import torch.distributed as dist

    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


def open_store(host: str) -> TCPStore:
    """Rank 0's store, on a free port that is bound from here on (``store.port``)."""
    import torch.distributed as dist

    return dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]


def find_store(meeting: Meeting, size: int) -> Store:
    """The store at which ``size`` ranks meet."""
    import torch.distributed as dist

    if isinstance(meeting, Path):
        return dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
    return dist.TCPStore(*meeting)  # type: ignore[attr-defined]
