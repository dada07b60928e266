"""Rank 0's end of the weight transfers, one group for each replica: one that is lost takes no other with it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onpolicy.distributed.heartbeat import Deadline
from onpolicy.distributed.remote_errors import one_line
from onpolicy.distributed.weight_transfer import WeightBucket
from onpolicy.rollout.vllm_transfer import Backend, TensorSpec, TransferFailed, WeightSender, WeightStream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

POLL = 0.5
"""Seconds between two looks at a replica that has been called."""


@dataclass(frozen=True)
class TransferGroup:
    """A group of two: rank 0 and one replica."""

    number: int
    """Of the group; each has a new one."""
    backend: Backend
    timeout: float
    """Seconds without an answer, or a tensor sent, after which the replica is lost."""


class ReplicaClient:
    """vLLM's calls of an engine, as calls of the replica that has it."""

    def __init__(self, replica: Any, timeout: float, report_progress: Callable[[], None]) -> None:
        """
        Args:
            replica: a handle of the actor
            timeout: seconds without progress of the transfer after which the replica is lost
            report_progress: called while it works
        """
        self._replica, self._report_progress = replica, report_progress
        self.version = 0
        """Of the weights that are sent next."""
        self._deadline = Deadline(timeout)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("open_transfer", init_info)

    def start_weight_update(self) -> None:
        self._call("begin_weights", self.version)

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._call("take_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("end_weights")

    def on_tensor(self) -> None:
        self._deadline.extend()
        self._report_progress()

    def _call(self, method: str, *arguments: Any) -> None:
        """Raises what the replica did, or TransferFailed where it died or says nothing."""
        import ray

        self._deadline.extend()
        ref = getattr(self._replica, method).remote(*arguments)
        while not ray.wait([ref], timeout=POLL)[0]:
            self._report_progress()
            if self._deadline.passed():
                raise TransferFailed(f"no answer to {method} for {self._deadline.seconds:g} s")
        try:
            ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise TransferFailed(one_line(error)) from error


class WeightSenders:
    """All groups of rank 0."""

    def __init__(
        self,
        weights: Callable[[], Iterable[tuple[str, Tensor]]],
        device: torch.device,
        report_progress: Callable[[], None],
    ) -> None:
        """
        Args:
            weights: makes the student's, tensor by tensor, with the other ranks
            device: this rank's
            report_progress: called while weights are sent
        """
        self._weights, self._device, self._report_progress = weights, device, report_progress
        self._specs: tuple[TensorSpec, ...] = ()
        """Of all tensors, as they were put into the object store."""
        self._open: dict[int, tuple[WeightSender, ReplicaClient]] = {}

    def noting(self, buckets: Iterable[WeightBucket]) -> Iterator[WeightBucket]:
        """The same buckets. What is in them is remembered: an engine is told of all tensors before the first is made, and the shapes of
        sharded and merged ones are known once they have been made."""
        specs: list[TensorSpec] = []
        for bucket in buckets:
            specs += [TensorSpec(entry.name, entry.dtype, entry.shape) for entry in bucket.entries]
            yield bucket
        self._specs = tuple(specs)

    def open(self, group: TransferGroup, replica: Any, host: str) -> str:
        """Opens a group with a replica; returns why that failed, or nothing.

        Args:
            group: what is opened
            replica: a handle of the actor
            host: this rank's address
        """
        assert self._specs, "weights go through the object store first"
        client = ReplicaClient(replica, group.timeout, self._report_progress)
        stream = WeightStream(self._specs, self._weights, self._device, client.on_tensor)
        try:
            sender = WeightSender(group.backend, client, stream, address=(host, _free_port(host)))
        except TransferFailed as failure:
            return str(failure)
        self._open[group.number] = sender, client
        return ""

    def send(self, number: int, version: int) -> str:
        """Sends all weights to the group of this number; returns why that failed, or nothing. A group that failed is left."""
        sender, client = self._open[number]
        client.version = version
        try:
            sender.send()
        except TransferFailed as failure:
            self.close(number)
            return str(failure)
        return ""

    def close(self, number: int) -> None:
        """Leaves a group, if it is there."""
        if found := self._open.pop(number, None):
            found[0].close()


def _free_port(host: str) -> int:
    """vLLM takes a number, not a socket; one that another process binds first fails the group, and the replica is replaced."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
