"""A trainer's tensors as files, which its ranks write and read themselves: nothing large passes through a driver.

Every rank walks through the same tensors in the same order, whole ones, which under ZeRO takes all ranks. Each keeps those that are its
share, in files of about ``FILE_BYTES``, so that a rank never holds more than that in addition to the model. A tensor is in the file of one
rank and is found by its name, so a state can be read by any other number of ranks, and by any engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from onpolicy.utils.errors import CheckpointError

if TYPE_CHECKING:
    from onpolicy.trainer.collectives import SingleProcess

FOLDER = "state"
FILE_BYTES = 1 << 30
"""A rank writes a file once it has this much to write."""


def own_share(tensors: Iterable[tuple[str, Tensor]], ranks: SingleProcess) -> Iterator[tuple[str, Tensor]]:
    """This rank's share, by size; goes through all of them, as every rank has to."""
    loads = [0] * ranks.size
    for name, tensor in tensors:
        owner = loads.index(min(loads))
        loads[owner] += tensor.nbytes
        if owner == ranks.rank:
            yield name, tensor


def write_share(folder: Path, tensors: Iterable[tuple[str, Tensor]], rank: int) -> BaseException | None:
    """Writes one rank's tensors to files in ``folder/state``, at most ``FILE_BYTES`` and one tensor of them in the host's memory.

    Returns:
        why they could not be written; all tensors have been gone through even so, because the other ranks wait in their collectives
    """
    held: dict[str, Tensor] = {}
    problem: BaseException | None = None
    number = size = 0
    for name, tensor in tensors:
        if problem is not None:
            continue
        held[name] = tensor.detach().to("cpu").contiguous()
        size += tensor.nbytes
        if size >= FILE_BYTES:
            problem = failure_of(_write_file, folder, rank, number, held)
            held, size, number = {}, 0, number + 1
    return problem or (failure_of(_write_file, folder, rank, number, held) if held else None)


def failure_of(write: Callable[..., None], *arguments: Any) -> BaseException | None:
    """Why it could not be done; safetensors raises its own type for a full disk, not OSError."""
    try:
        write(*arguments)
    except Exception as error:
        return error
    return None


def _write_file(folder: Path, rank: int, number: int, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    if not folder.is_dir():
        raise FileNotFoundError(
            f"{str(folder)!r} is not there on the node of rank {rank}; expected a run_dir that all nodes share"
        )
    path = folder / FOLDER / f"rank-{rank:05d}-{number:05d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(dict(tensors), path)


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a saved state by name, each read when it is asked for, by any rank."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: of the checkpoint

        Raises:
            CheckpointError: a file is not in the safetensors format; nothing in it is executed.
        """
        from safetensors import SafetensorError, safe_open

        self.folder, self._files, self._open = folder, dict[str, Any](), ExitStack()
        for path in sorted((folder / FOLDER).glob("rank-*.safetensors")):
            try:
                file = self._open.enter_context(safe_open(path, "pt"))  # type: ignore[no-untyped-call]
            except (OSError, SafetensorError) as error:
                self.close()
                raise CheckpointError(f"{str(path)!r} cannot be read: {type(error).__name__}: {error}") from error
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise CheckpointError(f"{str(self.folder / FOLDER)!r} holds no {name!r}; is the model another one?")
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def under(self, prefix: str) -> Mapping[str, Tensor]:
        """The tensors whose names begin with ``prefix/``, without it."""
        return _Under(self, f"{prefix}/", [n.removeprefix(f"{prefix}/") for n in self if n.startswith(f"{prefix}/")])

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> SavedTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Under(Mapping[str, Tensor]):
    """Some tensors of a mapping, each read when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str, names: Sequence[str]) -> None:
        self._tensors, self._prefix, self._names = tensors, prefix, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def moments_by_parameter(tensors: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
    """Parameter -> name of the optimizer's tensor -> the tensor, from tensors that are named ``parameter/name``."""
    names: dict[str, list[str]] = {}
    for name in tensors:
        parameter, _, key = name.rpartition("/")
        names.setdefault(parameter, []).append(key)
    return {parameter: _Under(tensors, f"{parameter}/", keys) for parameter, keys in names.items()}


def copied(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """One copy of each tensor in the host's memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors}


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of full tensors in the dtype they have; those that ZeRO-3 has sharded count as the whole."""
    return sum(int(getattr(t, "ds_numel", t.numel())) * t.element_size() for t in tensors)
