"""vLLM's weight transfer: weights go from the trainer's GPU into an engine of another process without passing the host's memory.

vLLM has both ends: an engine takes weights with ``LLM.update_weights``, and classes for trainers send them. This file is the trainer's
end, and what of it is onpolicy's: which tensors, in which dtype, and how many of them are alive. With NCCL tensors are sent one at a time
(``packed=False``; vLLM's packed form holds two buffers of 1 GiB and what fills them). With CUDA IPC they go through one buffer that holds
the largest (else vLLM keeps a copy of the whole model until the engine has read it, and its own buffer refuses a tensor above 1 GiB).
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from onpolicy.rollout.vllm_args import engine_arguments
from onpolicy.utils.device import synchronize

if TYPE_CHECKING:
    from torch import Tensor
    from vllm.distributed.weight_transfer.base import ParamMeta

Backend = Literal["nccl", "ipc"]
"""vLLM's names for NCCL and CUDA IPC."""
FACTORY = "WeightTransferTrainerFactory"
"""vLLM's class that makes a trainer's end."""
LEAVING = 1.0
"""Seconds that a thread has to leave a broadcast before the group is aborted under it."""


class TransferFailed(RuntimeError):
    """Weights did not reach an engine; the message says why."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be sent."""

    name: str
    dtype: str
    """As torch names it, without ``torch.``."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * int(getattr(torch, self.dtype).itemsize)


class EngineClient(Protocol):
    """What a trainer's end calls of the engine, as vLLM's ``VLLMWeightSyncClient``; an error of the engine is raised."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


@functools.cache
def why_no_transfer() -> str:
    """Why vLLM's weight transfer cannot be used, read off its sources; empty where it can."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return "vLLM is not installed"
    factory = Path(found.origin).parent / "distributed" / "weight_transfer" / "factory.py"
    names = _classes(factory)
    if FACTORY not in names or "weight_transfer_config" not in engine_arguments():
        return f"this vLLM has no class {FACTORY}"
    return ""


def _classes(file: Path) -> set[str]:
    try:
        return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)}
    except (OSError, SyntaxError):
        return set()


class WeightStream:
    """The student's weights as vLLM's ``WeightSource``: each tensor is made when it is its turn, in what the engine computes in."""

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        weights: Callable[[], Iterable[tuple[str, Tensor]]],
        device: torch.device,
        on_tensor: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            specs: of all tensors, in order; vLLM tells the engine before the first is sent
            weights: makes them, with other ranks where they are sharded
            device: from which they are sent
            on_tensor: called for each
        """
        self.specs, self.device = tuple(specs), device
        self._weights, self._on_tensor = weights, on_tensor
        self._made: Iterator[tuple[str, Tensor]] | None = None
        """What is left of this pass; None before its first tensor."""
        self._stopped, self._left = False, threading.Event()

    def metadata(self) -> list[ParamMeta]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(spec.name, getattr(torch, spec.dtype), spec.shape) for spec in self.specs]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        dtypes = {spec.name: getattr(torch, spec.dtype) for spec in self.specs}
        self._made = iter(self._weights())
        for name, tensor in self._made:
            self._on_tensor()
            yield name, tensor.detach().to(self.device, dtypes.get(name, tensor.dtype)).contiguous()
            del tensor
            if self._stopped:
                self._left.set()
                raise TransferFailed("the engine is gone")
        self._left.set()

    def stop(self) -> None:
        """From another thread: sends no further tensor. Returns when the thread that sends has left vLLM's code, or may not leave it."""
        self._stopped = True
        self._left.wait(LEAVING)

    def end(self) -> None:
        """Ends a pass. What has not been made of it is made and dropped: other ranks take part in gathering every tensor."""
        for _ in iter(self._weights()) if self._made is None else self._made:
            self._on_tensor()
        self._made, self._stopped = None, False
        self._left.clear()


class _Watched:
    """An ``EngineClient`` whose first error is known at once, also while vLLM waits for something else."""

    def __init__(self, client: EngineClient, on_error: Callable[[], None]) -> None:
        self._client, self._on_error = client, on_error
        self.error: Future[None] = Future()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call(self._client.init_weight_transfer_engine, init_info)

    def start_weight_update(self) -> None:
        self._call(self._client.start_weight_update)

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._call(self._client.update_weights, update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call(self._client.finish_weight_update)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            if not self.error.done():
                self.error.set_exception(error)
                self._on_error()
            raise


class WeightSender:
    """The trainer's end of a group with one engine."""

    def __init__(
        self, backend: Backend, client: EngineClient, stream: WeightStream, *, address: tuple[str, int]
    ) -> None:
        """
        Args:
            backend: NCCL, or CUDA IPC
            client: calls the engine
            stream: what is sent each time
            address: where the processes meet for NCCL: this one's host, and a port that is free there

        Raises:
            TransferFailed: the engine did not join.
        """
        self._stream = stream
        self._engine: Any = None
        self._client = _Watched(client, self._abort)
        ready: Future[Any] = Future()
        threading.Thread(target=self._open, args=(backend, address, ready), daemon=True).start()
        # vLLM waits five minutes for an engine that has refused already
        wait([ready, self._client.error], return_when=FIRST_COMPLETED)
        if self._client.error.done() or ready.exception():
            raise self._failure(ready.exception() if ready.done() else None)
        self._engine = ready.result()

    def _open(self, backend: Backend, address: tuple[str, int], ready: Future[Any]) -> None:
        try:
            from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

            with _current(self._stream.device):
                info = _init_info(backend, self._stream.specs, address)
                client, source = self._client, self._stream
                ready.set_result(WeightTransferTrainerFactory.trainer_init(info, client=client, source=source))  # type: ignore[arg-type]
        except BaseException as error:
            ready.set_exception(error)

    def send(self) -> None:
        """Sends all weights once; returns when the engine has loaded them.

        Raises:
            TransferFailed: it has not. The group is of no use then, and the engine may have some of them.
        """
        try:
            with _current(self._stream.device):
                synchronize()  # whatever thread has made the weights
                self._engine.send_weights()
        except Exception as error:
            raise self._failure(error) from error
        finally:
            self._stream.end()

    def close(self) -> None:
        """Leaves the group."""
        if self._engine is not None:
            self._engine.shutdown()

    def _abort(self) -> None:
        """What is queued on the GPU for an engine that is gone would wait without end, and with it all that is queued after it."""
        self._stream.stop()
        if (group := getattr(self._engine, "model_update_group", None)) is not None:
            group.destroy()

    def _failure(self, error: BaseException | None) -> TransferFailed:
        """What the engine raised, or else what happened here."""
        cause = self._client.error.exception() if self._client.error.done() else error
        return TransferFailed(f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}")


def _init_info(backend: Backend, specs: Sequence[TensorSpec], address: tuple[str, int]) -> Any:
    """How tensors travel."""
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    if backend == "ipc":
        largest = max(spec.size for spec in specs)
        return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=largest, rank=0)
    host, port = address
    return NCCLTrainerInitInfo(master_address=host, master_port=port, world_size=2, packed=False, rank=0)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """vLLM takes the thread's current GPU, and a thread begins with the first."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
