"""Access to weights that DeepSpeed ZeRO-3 has sharded; on full weights all of this does nothing.

DeepSpeed marks a sharded parameter with a ``ds_id`` and gathers it while its module runs. Code that uses a weight outside of
its module, as the chunked head does, gathers it here. All ranks have to do so at the same time.

A parameter with a ``comm_dtype`` is gathered, and its gradient reduced, in that dtype. The shards stay float32, and what is gathered here
to be kept or written is gathered as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, dtype, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMM_DTYPE = "comm_dtype"
"""DeepSpeed's attribute (``runtime/torch_autocast.py``)."""


def sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def gathered(*tensors: Tensor | None, rounded: bool = False) -> AbstractContextManager[Any]:
    """Inside, these weights are full on every rank; what is written to them is lost.

    Args:
        rounded: whether they may come as a forward pass would round them
    """
    # one that is gathered already belongs to an outer caller, who needs it for longer
    parts = {id(t): t for t in tensors if t is not None and sharded(t) and t.ds_status.name == "NOT_AVAILABLE"}  # type: ignore[attr-defined]
    if not parts:
        return nullcontext()
    return _gathered(list(parts.values()), rounded=rounded)


def gathered_for_write(*tensors: Tensor) -> AbstractContextManager[Any]:
    """Inside, these weights are full; what rank 0 writes to them is kept on every rank."""
    parts = [t for t in tensors if sharded(t)]
    return _gathered(parts, modifier_rank=0) if parts else nullcontext()


@contextmanager
def _gathered(parts: Sequence[Tensor], *, rounded: bool = False, **options: Any) -> Iterator[None]:
    import deepspeed

    with ExitStack() as held:
        with gathered_exactly(*(() if rounded else parts)):
            held.enter_context(deepspeed.zero.GatheredParameters(list(parts), **options))
        yield


@contextmanager
def gathered_exactly(*tensors: Tensor) -> Iterator[None]:
    """Inside, these weights are gathered as they are, by a forward pass too."""
    marks = {id(t): (t, getattr(t, COMM_DTYPE)) for t in tensors if hasattr(t, COMM_DTYPE)}
    for parameter, _ in marks.values():
        delattr(parameter, COMM_DTYPE)
    try:
        yield
    finally:
        for parameter, mark in marks.values():
            setattr(parameter, COMM_DTYPE, mark)


def travel_in(which: dtype, model: PreTrainedModel, *, more_than: int) -> None:
    """From now on the linear layers' matrices are gathered, and their gradients reduced, in a lower precision.

    Only those that a forward pass in that precision rounds anyway: not a matrix that is the embedding too, nor one that stays gathered and
    would stay rounded.

    Args:
        which: the dtype
        model: before DeepSpeed has it
        more_than: numbers in the largest matrix that is left as it is
    """
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    for module in model.modules():
        if type(module) is nn.Linear and id(module.weight) not in tables and module.weight.numel() > more_than:
            setattr(module.weight, COMM_DTYPE, which)


def full_tensors(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Full tensors, one at a time: an unsharded one as it is, a sharded one as a copy on the CPU."""
    for name, tensor in named:
        if sharded(tensor):
            with gathered(tensor):
                full = tensor.detach().to("cpu", copy=True)
            yield name, full
        else:
            yield name, tensor.detach()


def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's weights as ``full_tensors``, tied ones under each of their names."""
    return full_tensors(model.state_dict(keep_vars=True).items())


def local_shard(tensor: Tensor) -> Tensor:
    """The flat shard that this rank holds; an unsharded weight itself."""
    part: Tensor = tensor.ds_tensor if sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part
