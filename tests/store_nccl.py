"""Stand-ins for what only GPUs have, so that vLLM's own weight transfer runs between processes on a CPU.

vLLM's classes for both ends, their meeting, their calls and the engine that loads the weights are the real ones. Only the tensors, which
NCCL would send, go through the store at which the processes have met. A broadcast waits for the receiver, as on a GPU, until it is aborted.

In Ray's actors they are in place where ``ONPOLICY_TEST_STORE_NCCL`` is set, which the driver hands to them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from onpolicy.rollout.vllm_generator import VLLMGenerator

SWITCH = "ONPOLICY_TEST_STORE_NCCL"


class StoreCommunicator:
    """vLLM's ``PyNcclCommunicator`` as far as weight transfer uses it."""

    def __init__(self, group: Any, device: Any, library_path: str | None = None) -> None:
        self.group, self.disabled, self.sent = group, False, 0

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        assert tensor.is_contiguous() and tensor.dtype != torch.float64
        if self.group.rank != src:
            tensor.copy_(self.group.broadcast(tensor, src=src))
            self.group.send_obj("taken", dst=src)
        elif not self.disabled:
            self.group.broadcast(tensor, src=src)
            key = f"send_to/{src}/{self.group.recv_src_counter[1]}"
            while not self.disabled and not self.group.store.check([key]):
                time.sleep(0.001)
            if not self.disabled:
                self.group.recv_obj(src=1)
                self.sent += 1

    def destroy(self) -> None:
        self.disabled = True


STAND_INS = {
    "vllm.distributed.device_communicators.pynccl.PyNcclCommunicator": StoreCommunicator,
    "torch.accelerator.current_device_index": lambda: 0,
    "torch.accelerator.synchronize": lambda *_: None,
    "torch.cuda.current_stream": lambda *_: SimpleNamespace(synchronize=lambda: None),
}
"""By the name under which vLLM finds them."""


class StoreVLLM(VLLMGenerator):
    """vLLM, that notes which way weights come, and dies in the middle of them where a file says so."""

    def update_weights(self, weights: Iterable[tuple[str, Any]], *, version: int) -> None:
        super().update_weights(weights, version=version)
        _note(f"store {version}")

    def receive_weights(self, updates: Iterable[Mapping[str, Any]], *, version: int) -> None:
        super().receive_weights(_dying(updates), version=version)
        _note(f"nccl {version}")


def _dying(updates: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for update in updates:
        if (order := _folder() / "die").exists():
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        yield update


def _note(line: str) -> None:
    with (_folder() / "ways").open("a") as file:
        file.write(f"{line}\n")


def _folder() -> Path:
    return Path(os.environ[SWITCH])


def _in_actors() -> None:
    import importlib

    from onpolicy.distributed import weight_paths

    for name, stand_in in STAND_INS.items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, stand_in)
    weight_paths.gpu_uuid = lambda: f"GPU-{os.getpid()}"  # type: ignore[attr-defined]


if SWITCH in os.environ:
    _in_actors()
