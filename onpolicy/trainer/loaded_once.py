"""A model that is loaded once on a machine, however many ranks run there.

Weights of 8B parameters in float32 are 31 GiB: eight ranks that load them before they keep a shard each would need 245. So the first rank
of a machine loads them into memory without a file name (``memfd_create``), and every rank maps its parameters from there, each parameter
on its own and privately: what one writes the others do not see, and what is placed on a device, or sharded, is unmapped. The memory is
given back with the last mapping.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


OPEN_FILES = 65_536
"""Files that a process may have open at least, where the system allows it."""


@dataclass(frozen=True)
class _Place:
    """Where a parameter is in the memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class _Shared:
    """What the first rank of a machine tells the others."""

    host: str
    path: str
    """The memory, as a file of the process that has made it."""
    places: tuple[_Place, ...]
    model: bytes
    """Everything else of the model."""


def loaded_once(load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """What ``load`` returns, on each rank of torch's process group; called on one rank of each machine where that is possible.

    A model that cannot be handed on, and one on a system without such memory, is loaded by every rank.
    """
    import torch.distributed as dist

    if not (
        dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and hasattr(os, "memfd_create")
    ):
        return load()
    _allow_open_files()
    host, rank = socket.gethostname(), dist.get_rank()
    first = _gathered(host).index(host) == rank
    model = load() if first else None
    memory = os.memfd_create("onpolicy-weights", os.MFD_CLOEXEC) if first else None
    try:
        found = _gathered(None if model is None or memory is None else _moved(model, memory, host))
        if model is None:
            shared = next((each for each in found if each is not None and each.host == host), None)
            model = load() if shared is None else _mapped(shared) or load()
        _gathered(None)  # the memory has no name: it has to be mapped while its first process still holds it
        return model
    finally:
        if memory is not None:
            os.close(memory)


def _allow_open_files() -> None:
    """Python's mappings each hold the file open: as many as a model has parameters."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


def _gathered(value: Any) -> list[Any]:
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _moved(model: PreTrainedModel, memory: int, host: str) -> _Shared | None:
    """Moves the parameters to the memory; None, and the model as it was, where it cannot be handed on."""
    parameters = list(model.parameters())
    places, end = [], 0
    for parameter in parameters:
        place = _Place(end, tuple(parameter.shape), parameter.dtype, parameter.requires_grad)
        places.append(place)
        end += -(-place.num_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
    try:
        rest = io.BytesIO()
        _Pickler(rest, parameters).dump(model)
        os.ftruncate(memory, end)
        with torch.no_grad():
            for parameter, place in zip(parameters, places, strict=True):
                if place.num_bytes:
                    _view(memory, place, mmap.MAP_SHARED).copy_(parameter)
                    parameter.data = _view(memory, place, mmap.MAP_PRIVATE)
    except Exception:  # anything may refuse to be pickled, and a system to map; what has been moved stays valid
        return None
    return _Shared(host, f"/proc/{os.getpid()}/fd/{memory}", tuple(places), rest.getvalue())


def _mapped(shared: _Shared) -> PreTrainedModel | None:
    """None where the memory cannot be reached, or the model not be made here."""
    try:
        memory = os.open(shared.path, os.O_RDONLY)
    except OSError:
        return None
    try:
        model: PreTrainedModel = _Unpickler(io.BytesIO(shared.model), memory, shared.places).load()
    except Exception:  # its code may be on one rank alone
        return None
    finally:
        os.close(memory)
    return model


def _view(memory: int, place: _Place, how: int) -> Tensor:
    """A tensor over the memory; it is unmapped with its last reference."""
    buffer = mmap.mmap(memory, place.num_bytes, how, mmap.PROT_READ | mmap.PROT_WRITE, offset=place.offset)
    return torch.frombuffer(buffer, dtype=place.dtype).view(place.shape)


class _Pickler(pickle.Pickler):
    """Leaves parameters out."""

    def __init__(self, file: io.BytesIO, parameters: list[nn.Parameter]) -> None:
        super().__init__(file)
        self._numbers = {id(parameter): i for i, parameter in enumerate(parameters)}

    def persistent_id(self, value: Any) -> int | None:
        return self._numbers.get(id(value)) if isinstance(value, nn.Parameter) else None


class _Unpickler(pickle.Unpickler):
    """Puts in the parameters of the memory, a tied one once."""

    def __init__(self, file: io.BytesIO, memory: int, places: tuple[_Place, ...]) -> None:
        super().__init__(file)
        self._memory, self._places = memory, places
        self._made: dict[int, nn.Parameter] = {}

    def persistent_load(self, number: int) -> nn.Parameter:
        if number not in self._made:
            place = self._places[number]
            data = (
                _view(self._memory, place, mmap.MAP_PRIVATE)
                if place.num_bytes
                else torch.empty(place.shape, dtype=place.dtype)
            )
            self._made[number] = nn.Parameter(data, requires_grad=place.requires_grad)
        return self._made[number]
